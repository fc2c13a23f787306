"""Runs in processes of this machine, each with its own threads; one progress display over all."""

import multiprocessing
import signal
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path

from tqdm import tqdm

from relora_lab import process
from relora_lab.errors import Interrupted
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig


def launch(cells: Mapping[str, RunConfig], out: Path, *, workers: int) -> dict[str, str]:
    """Train every cell into out/name, going on where a cell was left. Returns the failures' reasons by name.

    A cell that fails does not stop the others, and a diverged cell is no failure. Raises Interrupted after
    SIGINT or SIGTERM, when every worker has saved its state.
    """
    RunFolder(out).make()
    bars = [_Bar(RunFolder(out / name), cell, at) for at, (name, cell) in enumerate(cells.items())]
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_interrupts_to_the_driver)
    with process.signals() as received, pool:
        futures = {name: pool.submit(_train, cell, out / name) for name, cell in cells.items()}
        pending = set(futures.values())
        while pending and not received:
            _, pending = wait(pending, timeout=0.5)
            for bar in bars:
                bar.update()
        for bar in bars:
            bar.close()
        if received:
            for worker in multiprocessing.active_children():
                worker.terminate()
            pool.shutdown(cancel_futures=True)
            raise Interrupted(received[0], "; the same command goes on from here")
    return {name: str(error) for name, future in futures.items() if (error := future.exception()) is not None}


def _leave_interrupts_to_the_driver() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends them to all; a run in training still takes them


def _train(cell: RunConfig, out: Path) -> None:
    from relora_lab import train  # takes seconds, in each worker once

    train.run(cell, out, resume=True)


class _Bar:
    """A progress bar that follows a run's status.json."""

    def __init__(self, run: RunFolder, cell: RunConfig, position: int) -> None:
        self.run = run
        self.bar = tqdm(
            desc=f"{run.path.name:<16}",
            total=cell.training.steps,
            position=position,
            unit="step",
            mininterval=0.2 if sys.stderr.isatty() else 30,
            dynamic_ncols=True,
        )

    def update(self) -> None:
        status = self.run.status
        told = status.get("state", "waiting")
        if "loss" in status:
            told = f"loss {status['loss']:.3f}, {status['tokens_per_second']:,} tokens/s"
        self.bar.set_postfix_str(told, refresh=False)
        self.bar.update(status.get("step", 0) - self.bar.n)

    def close(self) -> None:
        self.bar.close()
