"""Runs in processes of this machine, each with its own threads; one progress display over all."""

import multiprocessing
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor, wait
from pathlib import Path

from tqdm import tqdm

from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig


def launch(cells: Mapping[str, RunConfig], out: Path, *, workers: int, progress: bool) -> dict[str, str]:
    """Train every cell into out/name, going on where a cell was left. Returns the failures' reasons by name.

    A cell that fails does not stop the others, and a diverged cell is no failure.
    """
    RunFolder(out).make()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {name: pool.submit(_train, cell, out / name) for name, cell in cells.items()}
        bars = [_Bar(name, cell, out / name, at) for at, (name, cell) in enumerate(cells.items())] if progress else []
        pending: set[Future[None]] = set(futures.values())
        while pending:
            _, pending = wait(pending, timeout=0.5)
            for bar in bars:
                bar.update()
        for bar in bars:
            bar.close()
    return {name: str(error) for name, future in futures.items() if (error := future.exception()) is not None}


def _train(cell: RunConfig, out: Path) -> None:
    from relora_lab import train

    train.run(cell, out, resume=True)


class _Bar:
    """A progress bar that follows a run's status.json."""

    def __init__(self, name: str, cell: RunConfig, folder: Path, position: int) -> None:
        self.run = RunFolder(folder)
        self.bar = tqdm(
            desc=f"{name:<16}",
            total=cell.training.steps,
            position=position,
            unit="step",
            mininterval=0.2 if sys.stderr.isatty() else 30,
            dynamic_ncols=True,
        )

    def update(self) -> None:
        status = self.run.status
        state = status.get("state", "waiting")
        told = state if state != "running" else f"loss {status['loss']:.3f}, {status['tokens_per_second']:,} tokens/s"
        self.bar.set_postfix_str(told, refresh=False)
        self.bar.update(status.get("step", 0) - self.bar.n)

    def close(self) -> None:
        self.bar.close()
