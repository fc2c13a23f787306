"""Runs in worker processes: a failing cell does not stop the others, and is named."""

import os
import signal
import threading
import time

import pytest
from conftest import changed

from relora_lab import sizes, status
from relora_lab.errors import Interrupted
from relora_lab.launch import local
from relora_lab.runs import RunFolder


def test_cells_are_trained_a_failing_one_is_named_and_done_ones_are_left_alone(tmp_path, tiny):
    cells = {f"ok{seed}": changed(tiny, training={"seed": seed}) for seed in (0, 1)}
    failing = {"bad": changed(tiny, data={"corpus": str(tmp_path / "nowhere.txt")})}
    failures = local.launch(cells | failing, tmp_path / "runs", workers=2)
    assert failures.keys() == {"bad"}
    assert "nowhere.txt: cannot be read" in failures["bad"]
    assert [RunFolder(tmp_path / "runs" / name).state for name in cells] == ["finished"] * 2
    told = status.summary(RunFolder(tmp_path / "runs" / name) for name in [*cells, "bad"]).splitlines()
    final = RunFolder(tmp_path / "runs" / "ok0").final_evaluation
    _, trained = sizes.count_parameters(cells["ok0"].model.shape, rank=2, vocab_size=256)
    assert told[1].split()[:3] == ["ok0", f"{trained:,}", f"{final['perplexity']:.3f}"]
    assert told[3].split()[:6] == ["bad", "–", "–", "–", "0", "failed:"]

    before = (tmp_path / "runs" / "ok0" / "status.json").stat().st_mtime_ns
    assert local.launch(cells, tmp_path / "runs", workers=1) == {}
    assert (tmp_path / "runs" / "ok0" / "status.json").stat().st_mtime_ns == before


def test_a_stopped_grid_starts_no_further_run(tmp_path, tiny):
    """Executors keep one more call than workers in their queue; the others must not follow."""
    cells = {f"cell{n}": changed(tiny, training={"seed": n, "steps": 2000}) for n in range(6)}
    runs = {name: RunFolder(tmp_path / name) for name in cells}

    def stop_when_the_first_trains():
        while runs["cell0"].status.get("state") != "running":
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_the_first_trains).start()
    with pytest.raises(Interrupted, match="the same command goes on from here"):
        local.launch(cells, tmp_path, workers=1)
    assert runs["cell0"].status["state"] == "stopped"
    assert [name for name, run in runs.items() if run.path.exists()] in (["cell0"], ["cell0", "cell1"])
