"""What a grid costs beside training: python -m experiments.benchmarks.grid

Prints the time a cell of a grid of cells whose work is nothing (with the workers' start), of going through a grid
that has ended, and of `relora-lab status` on a large one (a process of its own). Exits 1 if a limit is not held.
With --cells 10000 --workers 100, and --on ray, it is a simulation of that cluster on this machine.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from relora_lab import grid, stages, status
from relora_lab.launch import local, worker
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig

LIMITS = {"no-op": 0.050, "ended": 0.050, "status": 2.0}  # seconds
GRID = """
[base.model]
size = "demo"
[base.training]
steps = 100
[base.optimizer]
lr = 1e-3
[rows.full]
method.name = "full"
[rows.lora]
method = { name = "lora", rank = 2 }
"""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=1_000, help="of the two grids that are gone through")
    parser.add_argument("--many", type=int, default=10_000, help="cells of the grid whose status is asked for")
    parser.add_argument("--on", choices=("local", "ray"), default="local", help="who does what is nothing")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--csv", type=Path, help="a CSV file, a row a number")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        out, cells = Path(folder), grid.cells(GRID, range(given.cells // 2))
        found = {"no-op": _idle(given.on, cells, out / "idle", given.workers) / given.cells}
        _pretend(cells, out / "ended")
        found["ended"] = _seconds(lambda: local.launch(cells, out / "ended", workers=given.workers)) / given.cells
        _pretend(grid.cells(GRID, range(given.many // 2)), out / "many")
        look = [sys.executable, "-m", "relora_lab", "status", str(out / "many")]
        found["status"] = _seconds(lambda: subprocess.run(look, check=True, stdout=subprocess.DEVNULL))
    if given.csv:
        from experiments import measured  # pandas; a worker imports what is at the top of this file

        cells_of = {"no-op": given.cells, "ended": given.cells, "status": given.many}
        rows = [
            {"case": name, "cells": cells_of[name], "seconds": seconds, "limit": LIMITS[name]}
            for name, seconds in found.items()
        ]
        measured.write(given.csv, rows, on=given.on, workers=given.workers)
    return verdict(found, given.cells, given.many)


def verdict(found: dict[str, float], cells: int, many: int) -> int:
    """Print the seconds found beside their limits; 1 if one is not held."""
    what = {
        "no-op": f"a cell, {cells:,} no-op cells",
        "ended": f"a cell, {cells:,} ended cells",
        "status": f"for status on {many:,} cells",
    }
    for name, seconds in found.items():
        held = "" if seconds <= LIMITS[name] else "  MISSED"
        print(f"{1000 * seconds:8.1f} ms {what[name]} (limit {1000 * LIMITS[name]:,.0f} ms){held}")
    return int(any(seconds > LIMITS[name] for name, seconds in found.items()))


def _idle(on: str, cells: dict[str, RunConfig], out: Path, workers: int) -> float:
    """Seconds for cells whose work is nothing."""
    idle = "experiments.benchmarks.idle_jobs"
    if on == "local":
        worker.PRELOAD.append(idle)
        return _seconds(lambda: local.launch(cells, out, workers=workers))
    import ray

    from relora_lab.launch import ray as on_ray

    hook = {"worker_process_setup_hook": f"{idle}.begin"}
    ray.init(num_cpus=workers, log_to_driver=False, include_dashboard=False, runtime_env=hook)
    return _seconds(lambda: on_ray.launch(cells, out, workers=workers))


def _seconds(function: Callable[[], object]) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def _pretend(cells: dict[str, RunConfig], out: Path) -> None:
    """Leave what status and launch read of a grid that has ended."""
    status.declare(cells, stages.plan(cells), out)
    for name in cells:
        run = RunFolder(out / name)
        run.make()
        (run.path / "status.json").write_text('{"state": "finished", "step": 100, "steps": 100, "perplexity": 4.2}')


if __name__ == "__main__":
    sys.exit(main())
