"""The same grid here, on a Ray cluster and in a SLURM queue: the same bytes, whoever dies on the way."""

import os
import signal
import threading

import pytest
from test_grid_survives import GRID, content, training
from test_launch import wait_until

from analysis import load_runs
from analysis.tables import ablation, perplexity
from relora_lab import grid
from relora_lab.launch import local, ray
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


def left_behind(out, cells):
    """All that the cells leave, and tables of them."""
    runs = load_runs(out)
    return {name: content(out / name) for name in cells}, [t.table(runs).to_csv() for t in (perplexity, ablation)]


@pytest.fixture
def cluster(monkeypatch):
    """Two Ray nodes of one CPU each, as (cluster, the one that can go)."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed")
    cluster = cluster_utils.Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 1})
    yield cluster, cluster.add_node(num_cpus=1)
    cluster_utils.ray.shutdown()
    cluster.shutdown()


def test_a_ray_cluster_that_loses_a_worker_and_then_a_node_leaves_the_same_bytes(cells, here, cluster, tmp_path):
    cluster, node = cluster
    lost = []

    def lose():
        process = wait_until(lambda: next(iter(training(tmp_path)), None))
        os.kill(process, signal.SIGKILL)
        lost.append(process)
        wait_until(lambda: len(training(tmp_path)) == 2)
        cluster.remove_node(node, allow_graceful=False)
        lost.append(node)

    losing = threading.Thread(target=lose)
    losing.start()
    assert ray.launch(cells, tmp_path) == {}
    losing.join()
    assert len(lost) == 2
    assert left_behind(tmp_path, cells) == left_behind(here, cells)
    assert not (tmp_path / ".jobs").exists()
