"""Runs in processes of this machine, each with its own threads; one progress display over all."""

import multiprocessing
import signal
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from relora_lab import process
from relora_lab.errors import Interrupted
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig


def launch(cells: Mapping[str, RunConfig], out: Path, *, workers: int) -> dict[str, str]:
    """Train every cell into out/name, going on where a cell was left. Returns the failures' reasons by name.

    A cell that fails does not stop the others, and a diverged cell is no failure. (If a worker process is
    killed, those not done yet fail with it; the same call goes on from there.) Raises Interrupted after
    SIGINT or SIGTERM, when every worker has saved its state.
    """
    RunFolder(out).make()
    runs = {name: RunFolder(out / name) for name in cells}
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_interrupts_to_the_driver)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    progress = Progress(*columns, TextColumn("{task.fields[told]}"), console=Console(stderr=True))
    with process.signals() as received, pool:
        futures = {name: pool.submit(_train, cell, out / name) for name, cell in cells.items()}
        pending = set(futures.values())
        with progress:
            display = _Display(runs, cells, progress)
            while pending and not received:
                _, pending = wait(pending, timeout=0.5)
                display.update()
        if received:
            for future in pending:  # leaving the pool would train them all
                future.cancel()
            for worker in multiprocessing.active_children():
                worker.terminate()
    if received:
        raise Interrupted(received[0], "before the last run was done; the same command goes on from here")
    return {name: str(error) for name, future in futures.items() if (error := future.exception()) is not None}


def _leave_interrupts_to_the_driver() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends them to all; a run in training still takes them


def _train(cell: RunConfig, out: Path) -> None:
    from relora_lab import train  # takes seconds, in each worker once

    train.run(cell, out, resume=True)


class _Display:
    """A line a run, from its status.json; a run's clock starts when the run does."""

    def __init__(self, runs: Mapping[str, RunFolder], cells: Mapping[str, RunConfig], progress: Progress) -> None:
        self.runs, self.progress = runs, progress
        self.tasks = {
            name: progress.add_task(name, total=cell.training.steps, start=False, told="waiting")
            for name, cell in cells.items()
        }

    def update(self) -> None:
        for name, run in self.runs.items():
            status, task = run.status, self.progress.tasks[self.tasks[name]]
            told, step = status.get("state", "waiting"), status.get("step", 0)
            if told == "running":
                if not task.started:
                    self.progress.reset(task.id, completed=step)
                told = f"loss {status['loss']:.3f}, {status['tokens_per_second']:,} tokens/s"
            self.progress.update(task.id, completed=step, told=told)
