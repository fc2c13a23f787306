"""One progress display over all workers: how much of the grid is done, and what each worker is at."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from relora_lab import status
from relora_lab.errors import printable
from relora_lab.launch.jobs import Job
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig
from relora_lab.workspace import stage_folders

NOTE_SECONDS = 60.0  # between lines where there is no terminal


class Display:
    """Lines that renew themselves on a terminal; elsewhere a line for each cell that ends, and now and then one."""

    def __init__(self, title: str, cells: Mapping[str, RunConfig], jobs: list[Job], out: Path) -> None:
        self._out, self._console = out, Console(stderr=True)
        self._cells = len(cells)
        self._ended = len(cells) - sum(job.kind == "cell" for job in jobs)
        self._done, self._updates = 0, sum(job.end - job.start for job in jobs)
        self._begun = self._noted = time.monotonic()
        self._lines: dict[str, TaskID] = {}
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        told = TextColumn("{task.fields[told]}")
        self._progress = Progress(*columns, told, console=self._console, speed_estimate_period=600, transient=False)
        self._all = self._progress.add_task(title, total=self._updates, told=self._count())

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begun(self, job: Job) -> None:
        """A worker has begun the job."""
        if job.kind != "tokens":
            self._lines[job.key] = self._progress.add_task(f"  {job.name}", total=job.end, told="")
        self._progress.update(self._all, told=self._count())

    def ended(self, job: Job) -> None:
        """A job is done."""
        self._done += job.end - job.start
        self._forget(job)
        if job.kind == "cell":
            self._ended += 1
            if not self._console.is_terminal:
                self.say(f"{self._count()}: {RunFolder(self._out / job.name).summary()}")
        self._progress.update(self._all, completed=self._done, told=self._count())

    def failed(self, job: Job, reason: str) -> None:
        """A job failed; the others go on."""
        self._forget(job)
        if job.kind == "cell":
            self._ended += 1
        self.say(f"{job.name} failed: {reason}")

    def say(self, line: str) -> None:
        """A line for people, above the bars."""
        self._console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def update(self, running: Iterable[tuple[Job, int]]) -> None:
        """Look at the folders of the jobs that are running, each with the process that does it."""
        done, stages = self._done, stage_folders(self._out)
        for job, pid in running:
            folders = [RunFolder(self._out / job.name)] if job.kind == "cell" else stages
            found = next((s for f in folders if (s := f.status).get("process") == pid), {})
            step = int(found.get("step", 0))
            done += max(0, step - job.start)
            if job.key in self._lines and "loss" in found:
                told = f"loss {found['loss']:.3f}, {found['tokens_per_second']:,} tokens/s"
                self._progress.update(self._lines[job.key], completed=step, told=told)
        self._progress.update(self._all, completed=done)
        if not self._console.is_terminal and time.monotonic() - self._noted > NOTE_SECONDS:
            self._noted = time.monotonic()
            left = (self._noted - self._begun) * (self._updates - done) / done if done else None
            ahead = f", about {status.duration(left)} left" if left is not None else ""
            self.say(f"{self._count()}, {done:,} of {self._updates:,} updates{ahead}")

    def _count(self) -> str:
        return f"{self._ended}/{self._cells} cells"

    def _forget(self, job: Job) -> None:
        line = self._lines.pop(job.key, None)
        if line is not None:
            self._progress.remove_task(line)
