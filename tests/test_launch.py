"""Runs in worker processes: a failing cell does not stop the others, and is named."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import changed

from relora_lab import sizes, status
from relora_lab.errors import Interrupted
from relora_lab.launch import jobs, local, worker
from relora_lab.runs import RunFolder
from relora_lab.workspace import stage_folders


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


def test_a_cell_that_another_process_holds_is_waited_for_and_then_trained(tmp_path, tiny):
    cells = {
        name: changed(tiny) if name == "held" else changed(tiny, training={"seed": 1}) for name in ("held", "free")
    }
    RunFolder(tmp_path / "held").make()
    with RunFolder(tmp_path / "held").lock():
        training = threading.Thread(target=local.launch, args=(cells, tmp_path), kwargs={"workers": 2})
        training.start()
        wait_until(lambda: RunFolder(tmp_path / "free").state == "finished")
        time.sleep(1.5)  # it is tried again meanwhile
        assert not RunFolder(tmp_path / "held").started
    training.join(60)
    assert RunFolder(tmp_path / "held").state == "finished"


def test_a_stage_that_fails_takes_its_cells_with_it_and_no_others(tmp_path, tiny):
    scratch = {"name": "lora", "rank": 2}
    cells = {"warm": changed(tiny), "scratch": changed(tiny, method=scratch, training={"warm_start": 0})}
    (tmp_path / ".stages").write_text("in the way")
    failures = local.launch(cells, tmp_path, workers=1)
    assert failures.keys() == {"warm"}
    found = RunFolder(tmp_path / "warm").status
    assert (found["state"], found["reason"]) == ("failed", failures["warm"])
    assert RunFolder(tmp_path / "scratch").state == "finished"

    (tmp_path / ".stages").unlink()
    assert local.launch(cells, tmp_path, workers=1) == {}
    assert RunFolder(tmp_path / "warm").state == "finished"


def test_a_worker_that_is_killed_more_often_than_a_job_may_die_loses_nothing_while_it_gets_on(tmp_path, tiny):
    training = {"warm_start": 0, "reference_step": 2000, "steps": 2001, "checkpoint_every": 50}
    cells = {"full": changed(tiny, method={"name": "full"}, training=training)}  # all of it is one stage
    grid_thread = threading.Thread(target=local.launch, args=(cells, tmp_path), kwargs={"workers": 1})
    grid_thread.start()
    for death in range(jobs.DEATHS + 2):
        stage = wait_until(lambda: next(iter(stage_folders(tmp_path)), None))
        wait_until(trains_from(stage, 50 * (death + 1)))
        os.kill(stage.status["process"], signal.SIGKILL)
    grid_thread.join(120)
    assert RunFolder(tmp_path / "full").state == "finished"


def test_a_second_signal_does_not_wait_for_a_worker_that_hangs(tmp_path, tiny):
    cells = {"cell": changed(tiny, training={"steps": 5000})}
    run_folder = RunFolder(tmp_path / "cell")

    def stop_twice():
        wait_until(lambda: run_folder.state == "running")
        os.kill(run_folder.status["process"], signal.SIGSTOP)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    threading.Thread(target=stop_twice).start()
    with pytest.raises(Interrupted):
        local.launch(cells, tmp_path, workers=1)
    assert not run_folder.held


def test_a_script_without_a_main_guard_is_told_so(tmp_path, tiny):
    script = """
import json, sys
from pathlib import Path
from relora_lab import config
from relora_lab.launch import local
local.launch({"cell": config.parse(json.loads(sys.argv[1]))}, Path(sys.argv[2]), workers=1)
"""
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, tmp_path / "script.py", json.dumps(tiny), tmp_path / "runs"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "needs its call under if __name__ == '__main__'" in done.stderr.splitlines()[-1]


def test_a_cell_whose_status_is_damaged_fails_and_no_other(tmp_path, tiny):
    cells = {f"cell{seed}": changed(tiny, training={"seed": seed}) for seed in (0, 1)}
    damaged = RunFolder(tmp_path / "cell0")
    damaged.make()
    damaged.write_config(cells["cell0"])
    (damaged.path / "status.json").write_text("{")
    failures = local.launch(cells, tmp_path, workers=1)
    assert failures.keys() == {"cell0"}
    assert "status.json: is damaged" in failures["cell0"]
    assert RunFolder(tmp_path / "cell1").state == "finished"


def trains_from(run_folder, step):
    """Does a process train from a state of at least that step?"""
    return lambda: run_folder.checkpoint_step >= step and run_folder.held


def wait_until(condition, seconds=240):
    """What the condition gives, as soon as it holds."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


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


def test_of_several_gpus_each_worker_takes_another_one(monkeypatch):
    taken = []
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    for gpus in (0, 1, 3):
        monkeypatch.setattr("torch.cuda.device_count", lambda gpus=gpus: gpus)
        for number in range(4):
            worker.take_gpu(number)
    assert taken == [0, 1, 2, 0]
