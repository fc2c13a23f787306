"""A grid that is killed again and again ends as one that was left alone; two drivers do each cell once."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT
from test_repeat import content

from analysis import load_runs
from analysis.tables import ablation, perplexity
from relora_lab import grid, status
from relora_lab.runs import RunFolder
from relora_lab.workspace import stage_folders

GRID = """
seeds = [0, 1, 2]
[base.model]
size = "demo"
hidden = 16
intermediate = 40
heads = 2
[base.data]
corpus = "CORPUS"
sequence_length = 32
batch_size = 4
[base.training]
steps = 300
warm_start = 100
eval_tokens = 512
checkpoint_every = 25
norms_every = 50
[base.method]
rank = 2
restart_every = 50
restart_warmup = 3
[base.optimizer]
lr = 3e-3
warmup_steps = 5
[rows.full]
method.name = "full"
training = { warm_start = 0, reference_step = 100 }
[rows.lora]
method.name = "lora"
[rows.relora]
method.name = "relora"
[rows.relora-zero]
method = { name = "relora", optimizer_reset = "zero" }
"""
DRIVER = """
import sys
from pathlib import Path
from relora_lab import grid
from relora_lab.launch import local, worker
worker.PRELOAD.append("counted_updates")
declared, out = map(Path, sys.argv[1:])
sys.exit(len(local.launch(grid.cells(grid.read(declared)), out, workers=2)))
"""


@pytest.fixture(scope="module")
def declared(tmp_path_factory):
    path = tmp_path_factory.mktemp("grid") / "grid.toml"
    path.write_text(GRID.replace("CORPUS", subprocess.__file__))
    return path


def driver(declared, out):
    out.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "COUNTED_UPDATES": str(out / ".updates")}
    command = [sys.executable, "-c", DRIVER, str(declared), str(out)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def counted(out):
    """How often each update of each folder was made."""
    return Counter((out / ".updates").read_text().splitlines())


def training(out):
    """Processes that train a run or a stage now."""
    folders = [RunFolder(path) for path in out.glob("*-seed*")] + stage_folders(out)
    return [found["process"] for run in folders if (found := run.status).get("state") == "running" and run.held]


def ended(out):
    """When each run and stage that has ended did so."""
    found = [RunFolder(path) for path in out.glob("*-seed*")] + stage_folders(out)
    return {run.path: (run.path / "status.json").stat().st_mtime_ns for run in found if run.ended}


def left_behind(out, declared):
    """All that the grid's cells leave, and tables of them."""
    names = grid.cells(grid.read(declared))
    runs = load_runs(out)
    tables = [module.table(runs).to_csv() for module in (perplexity, ablation)]
    return {name: content(out / name) for name in names}, tables


@pytest.fixture(scope="module")
def undisturbed(declared, tmp_path_factory):
    """What two drivers left that began at once on one folder."""
    out = tmp_path_factory.mktemp("undisturbed") / "runs"
    drivers = [driver(declared, out) for _ in range(2)]
    for one in drivers:
        _, said = one.communicate(timeout=300)
        assert one.returncode == 0, said
    return out


def test_two_drivers_at_once_do_each_update_once(undisturbed):
    found = counted(undisturbed)
    assert set(found.values()) == {1}
    shared = 3 * (100 + 49)  # full rank up to the warm start, then low rank up to the first restart
    assert found.total() == shared + 3 * (200 + 3 * 151)
    assert {cell.state for cell in status.of_folder(undisturbed).cells} == {"finished"}


def test_a_grid_killed_at_20_moments_leaves_the_same_bytes(undisturbed, declared, tmp_path):
    chance, out, killed, done = np.random.default_rng(0), tmp_path / "runs", Counter(), {}
    current = driver(declared, out)
    while killed.total() < 20:
        time.sleep(chance.uniform(0.05, 0.5))
        assert current.poll() is None, current.stderr.read()
        done = ended(out) | done
        if not (at_work := training(out)):
            continue
        if killed["worker"] < 4 * (killed["driver"] + 1):
            try:
                os.kill(chance.choice(at_work), signal.SIGKILL)
            except ProcessLookupError:  # it has just ended by itself
                continue
            killed["worker"] += 1
        else:
            current.kill()
            current.wait()
            killed["driver"] += 1
            current = driver(declared, out)
    _, said = current.communicate(timeout=300)
    assert current.returncode == 0, said
    assert left_behind(out, declared) == left_behind(undisturbed, declared)
    assert ended(out).items() >= done.items()  # what has ended, a stage or a cell, is not touched again
    assert not any(RunFolder(out / name).leftovers() for name in grid.cells(grid.read(declared)))
