"""The same grid here and in a SLURM queue: the same bytes, whoever dies on the way."""

import shutil
import subprocess
import sys
import threading
import time
import warnings

import pytest
import slurm_cluster
from conftest import changed
from engines import DECLARED, kill_one, launch_and_stop, left_behind, long_cells, trained_here
from test_grid_survives import training
from test_launch import wait_until

from relora_lab import files, grid
from relora_lab.errors import BadInput
from relora_lab.launch import slurm
from relora_lab.runs import RunFolder


@pytest.fixture(scope="module")
def cells():
    return grid.cells(DECLARED, seeds=[0])


@pytest.fixture(scope="module")
def here(cells, tmp_path_factory):
    """What the processes of this machine left."""
    return trained_here(cells, tmp_path_factory.mktemp("here") / "runs")


@pytest.fixture(scope="module")
def queue(tmp_path_factory):
    """The variables by which SLURM's commands find a cluster of two nodes."""
    if reason := slurm_cluster.missing():
        pytest.skip(reason)
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm")) as variables:
        yield variables


@pytest.fixture
def in_queue(queue, monkeypatch):
    for name, value in queue.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slurm, "GRACE", 1.0)  # one file system
    return queue


DRIVER = """
import sys
from pathlib import Path
from relora_lab import files, grid
from relora_lab.errors import BadInput, Interrupted
from relora_lab.launch import slurm
slurm.GRACE = 1.0
slurm.launch(grid.cells(Path(sys.argv[1]).read_text(), seeds=[0]), Path(sys.argv[2]))
"""


def running():
    """Numbers of SLURM's jobs that are running."""
    done = subprocess.run(["squeue", "-hrt", "R", "-o", "%i"], capture_output=True, text=True, check=True)
    return done.stdout.split()


def numbers(out):
    """What SLURM called the jobs that were submitted last, by the name of the file that says it."""
    return {path.name: path.read_text() for path in out.glob(".jobs/*.number")}


def test_a_slurm_queue_whose_job_driver_and_node_are_killed_leaves_the_same_bytes(cells, here, in_queue, tmp_path):
    declared, out = tmp_path / "grid.toml", tmp_path / "runs"
    declared.write_text(DECLARED)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, declared, out], stderr=subprocess.PIPE, text=True)
    kill_one(out)
    wait_until(lambda: [path for path in out.glob("*-seed0") if RunFolder(path).state == "running"])
    driver.kill()
    assert "its process was killed (SLURM job" in driver.communicate()[1]
    submitted, kept, ended = numbers(out), [], threading.Event()

    def lose():
        wait_until(lambda: files.is_locked(out / ".jobs" / "driver"))
        time.sleep(2)  # by now the second driver has submitted what it misses
        kept.append(numbers(out).items() >= submitted.items())
        requeued = wait_until(lambda: running() if training(out) else [])[0]
        subprocess.run(["scontrol", "requeue", requeued], check=True)
        wait_until(lambda: ended.is_set() or (training(out) and requeued not in running()))
        if ended.is_set():
            warnings.warn("all was trained before a node could be lost", stacklevel=1)
        else:
            slurm_cluster.cut_power(in_queue, "node1")

    losing = threading.Thread(target=lose)
    losing.start()
    assert slurm.launch(cells, out) == {}
    ended.set()
    losing.join()
    assert kept == [True]
    assert left_behind(out, cells) == left_behind(here, cells)
    assert not (out / ".jobs").exists()


@pytest.mark.usefixtures("in_queue")
def test_a_stopped_grid_cancels_its_jobs_and_they_save_their_states(tiny, tmp_path):
    launch_and_stop(slurm.launch, long_cells(tiny), tmp_path / "runs")


BUSY = """#!/bin/sh
if mkdir "$0.first" 2>/dev/null; then
    echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
    exit 1
fi
exec SBATCH "$@"
"""


def test_a_controller_that_is_busy_is_asked_again_and_that_is_said(in_queue, tiny, tmp_path, monkeypatch, capsys):
    busy = tmp_path / "bin" / "sbatch"
    busy.parent.mkdir()
    busy.write_text(BUSY.replace("SBATCH", shutil.which("sbatch")))
    busy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{busy.parent}:{in_queue['PATH']}")
    monkeypatch.setattr(slurm, "AGAIN", 1.0)
    assert slurm.launch({"cell": changed(tiny, training={"warm_start": 0})}, tmp_path / "runs") == {}
    said = capsys.readouterr().err.splitlines()
    assert said[said.index("going on") - 1].endswith("Socket timed out on send/recv operation")


@pytest.mark.usefixtures("in_queue")
def test_what_slurm_refuses_is_an_error_in_a_line(cells, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match=r"--on slurm: .*invalid partition specified: nope"):
        slurm.launch(cells, tmp_path / "runs", options={"partition": "nope"})
    with pytest.raises(BadInput, match=r"--on slurm: sbatch: unrecognized option '--partitoin"):
        slurm.launch(cells, tmp_path / "runs", options={"partitoin": "test"})
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(BadInput, match=r"SLURM job .* ended without a result: its log ends: "):
        slurm.launch(cells, tmp_path / "runs")
