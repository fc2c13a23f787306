"""The same grid here and on a Ray cluster: the same bytes, whoever dies on the way."""

import threading
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import changed
from engines import DECLARED, kill_one, launch_and_stop, left_behind, long_cells, trained_here
from test_grid_survives import training
from test_launch import wait_until

from relora_lab import grid
from relora_lab.errors import BadInput
from relora_lab.launch import ray, remote
from relora_lab.runs import RunFolder


@pytest.fixture(scope="module")
def cells():
    return grid.cells(DECLARED, seeds=[0])


@pytest.fixture(scope="module")
def here(cells, tmp_path_factory):
    """What the processes of this machine left."""
    return trained_here(cells, tmp_path_factory.mktemp("here") / "runs")


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


@pytest.mark.usefixtures("cluster")
def test_on_ray_an_exception_is_not_tried_again_and_a_stopped_grid_saves_its_states(tiny, tmp_path):
    failing = {"bad": changed(tiny, data={"corpus": str(tmp_path / "nowhere.txt")})}
    launch_and_stop(ray.launch, failing | long_cells(tiny), tmp_path / "runs")
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
