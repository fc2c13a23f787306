"""One progress display over all workers: how much of the grid is done, and what each worker is at."""

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from relora_lab.errors import BadInput, printable
from relora_lab.launch.engine import Task
from relora_lab.launch.jobs import Job, saved
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig
from relora_lab.status import duration

NOTE_SECONDS = 60.0  # between lines where there is no terminal
FILES_A_SECOND = 50  # that are read to see what workers are at


class Display:
    """Lines that renew themselves on a terminal; elsewhere a line for each cell that ends, and now and then one."""

    def __init__(self, title: str, cells: Mapping[str, RunConfig], jobs: list[Job]) -> None:
        self._console = Console(stderr=True)
        self._cells = len(cells)
        self._ended = len(cells) - sum(job.kind == "cell" for job in jobs)
        self._next_look = 0.0
        self._done, self._updates = 0, sum(job.end - job.start for job in jobs)
        self._begun = self._noted = time.monotonic()
        self._lines: dict[str, TaskID] = {}
        self._sharing = saved(jobs)
        name = TextColumn("{task.description}", markup=False)
        columns = name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        told = TextColumn("{task.fields[told]}")
        self._progress = Progress(*columns, told, console=self._console, speed_estimate_period=600)
        self._all = self._progress.add_task(printable(title), total=self._updates, told=self._count())

    def __enter__(self) -> Self:
        if self._sharing:
            self.say(self._sharing)
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """A line for people, above the bars."""
        self._console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def ended(self, job: Job, run: RunFolder) -> None:
        """A job is done; a cell's into the folder `run`."""
        self._done += job.end - job.start
        if job.kind == "cell":
            self._ended += 1
            if not self._console.is_terminal:
                self.say(f"{self._count()}: {run.summary()}")

    def failed(self, job: Job, reason: str) -> None:
        """A cell failed; the others go on."""
        self._ended += 1
        self._updates -= job.end - job.start
        self.say(f"{job.name} failed: {reason}")

    def forget(self, job: Job) -> None:
        """No worker is at the job any more."""
        if (line := self._lines.pop(job.key, None)) is not None:
            self._progress.remove_task(line)

    def update(self, tasks: Iterable[Task]) -> None:
        """Look at what the workers are at, but not too often: many workers' files may lie on a network."""
        if time.monotonic() < self._next_look:
            return
        tasks = list(tasks)
        self._next_look = time.monotonic() + len(tasks) / FILES_A_SECOND
        done = self._done
        for task in tasks:
            if task.job.kind == "tokens":
                self._line(task.job, 0, "reading the text")
            found = _status(task.folder)
            if found.get("state") == "running" and "loss" in found:
                done += max(0, found["step"] - task.job.start)
                speed = f"{found['tokens_per_second']:,} tokens/s"
                self._line(task.job, found["step"], f"loss {found['loss']:.3f}, {speed}")
        self._progress.update(self._all, completed=done, total=self._updates, told=self._count())
        if not self._console.is_terminal and time.monotonic() - self._noted > NOTE_SECONDS:
            self._noted = time.monotonic()
            left = (self._noted - self._begun) * (self._updates - done) / done if done else None
            ahead = f", about {duration(left)} left" if left is not None else ""
            self.say(f"{self._count()}, {done:,} of {self._updates:,} updates{ahead}")

    def _line(self, job: Job, step: int, told: str) -> None:
        if job.key not in self._lines:
            self._lines[job.key] = self._progress.add_task(f"  {printable(job.name)}", total=job.end or None, told="")
        self._progress.update(self._lines[job.key], completed=step, told=told)

    def _count(self) -> str:
        return f"{self._ended}/{self._cells} cells"


def _status(folder: RunFolder | None) -> dict[str, Any]:
    """What a folder says of itself; nothing if that cannot be read, which is its worker's to say."""
    with suppress(BadInput):
        return folder.status if folder else {}
    return {}
