"""The same grid here, on a Ray cluster and in a SLURM queue: the same bytes, whoever dies on the way."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import slurm_cluster
from conftest import changed
from test_grid_survives import GRID, content, training
from test_launch import wait_until

from analysis import load_runs
from analysis.tables import ablation, perplexity
from relora_lab import files, grid
from relora_lab.errors import BadInput, Interrupted
from relora_lab.launch import local, ray, remote, slurm
from relora_lab.runs import RunFolder


@pytest.fixture(scope="module")
def cells():
    return grid.cells(GRID.replace("CORPUS", threading.__file__), seeds=[0])


@pytest.fixture(scope="module")
def here(cells, tmp_path_factory):
    """What the processes of this machine left."""
    out = tmp_path_factory.mktemp("here") / "runs"
    assert local.launch(cells, out, workers=2) == {}
    return out


def kill_one(out):
    """Kill a process that trains something below `out`, as soon as there is one."""
    os.kill(process := wait_until(lambda: next(iter(training(out)), None)), signal.SIGKILL)
    return process


def left_behind(out, cells):
    """All that the cells leave, and tables of them."""
    runs = load_runs(out)
    return {name: content(out / name) for name in cells}, [t.table(runs).to_csv() for t in (perplexity, ablation)]


def trains(node, out):
    """Does a worker of that Ray node train something below `out`?"""
    raylet = node.all_processes["raylet"][0].process.pid
    with suppress(OSError):  # it has ended meanwhile
        return any(f"PPid:\t{raylet}\n" in Path(f"/proc/{worker}/status").read_text() for worker in training(out))
    return False


@pytest.fixture
def cluster(monkeypatch):
    """A Ray cluster and its two nodes that work, of one CPU each."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed")
    cluster = cluster_utils.Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 0})
    yield cluster, [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster_utils.ray.shutdown()
    cluster.shutdown()


def test_a_ray_cluster_that_loses_a_worker_and_then_a_node_leaves_the_same_bytes(cells, here, cluster, tmp_path):
    cluster, nodes = cluster
    lost = []

    def lose():
        lost.append(kill_one(tmp_path))
        node = wait_until(lambda: next((node for node in nodes if trains(node, tmp_path)), None))
        cluster.remove_node(node, allow_graceful=False)
        lost.append(node)

    losing = threading.Thread(target=lose)
    losing.start()
    assert ray.launch(cells, tmp_path) == {}
    losing.join()
    assert len(lost) == 2
    assert left_behind(tmp_path, cells) == left_behind(here, cells)
    assert not (tmp_path / ".jobs").exists()


@pytest.fixture
def long(tiny):
    """Two cells that nobody waits for."""
    return {f"long{seed}": changed(tiny, training={"steps": 20000, "seed": seed}) for seed in (0, 1)}


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


@pytest.mark.usefixtures("cluster")
def test_on_ray_an_exception_is_not_tried_again_and_a_stopped_grid_saves_its_states(tiny, long, tmp_path):
    failing = {"bad": changed(tiny, data={"corpus": str(tmp_path / "nowhere.txt")})}
    launch_and_stop(ray.launch, failing | long, tmp_path / "runs")
    assert "nowhere.txt: cannot be read" in RunFolder(tmp_path / "runs" / "bad").status["reason"]


@pytest.mark.usefixtures("cluster")
def test_a_ray_node_that_sees_another_folder_ends_the_grid_in_a_line(cells, tmp_path, monkeypatch):
    class Elsewhere(remote.Words):
        def __init__(self, out):
            super().__init__(out)
            self.place = self.place._replace(name="of another folder")

    monkeypatch.setattr(remote, "Words", Elsewhere)
    with pytest.raises(BadInput, match=r"is another folder on .*; all machines of a grid need to share it"):
        ray.launch(cells, tmp_path)


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
    declared.write_text(GRID.replace("CORPUS", threading.__file__))
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
def test_a_stopped_grid_cancels_its_jobs_and_they_save_their_states(long, tmp_path):
    launch_and_stop(slurm.launch, long, tmp_path / "runs")


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
