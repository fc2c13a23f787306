"""A small grid for the engines that train grids elsewhere, and what it has to leave whoever trained it."""

import os
import signal
import threading
from contextlib import suppress

import pytest
from conftest import changed
from test_grid_survives import GRID, content, training
from test_launch import wait_until

from analysis import load_runs
from analysis.tables import ablation, perplexity
from relora_lab.errors import Interrupted
from relora_lab.launch import local
from relora_lab.runs import RunFolder

DECLARED = GRID.replace("CORPUS", threading.__file__)


def trained_here(cells, out):
    """The cells, trained by the processes of this machine."""
    assert local.launch(cells, out, workers=2) == {}
    return out


def long_cells(tiny):
    """Two cells that nobody waits for."""
    return {f"long{seed}": changed(tiny, training={"steps": 20000, "seed": seed}) for seed in (0, 1)}


def kill_one(out):
    """Kill a process that trains something below `out`, as soon as there is one."""

    def kill():
        for process in training(out):
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(process, signal.SIGKILL)
                return process
        return None

    return wait_until(kill)


def left_behind(out, cells):
    """All that the cells leave, and tables of them."""
    runs = load_runs(out)
    return {name: content(out / name) for name in cells}, [t.table(runs).to_csv() for t in (perplexity, ablation)]


def launch_and_stop(launch, cells, out):
    """Send SIGTERM to a grid when its long cells train, and see that each of them saves its state."""
    runs = [RunFolder(out / name) for name in cells if name.startswith("long")]

    def stop():
        wait_until(lambda: all(run.state == "running" for run in runs))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    with pytest.raises(Interrupted, match="the same command goes on from here"):
        launch(cells, out)
    assert [run.state for run in runs] == ["stopped"] * 2
    assert all(run.checkpoint_step == run.status["step"] > 0 and not run.held for run in runs)
