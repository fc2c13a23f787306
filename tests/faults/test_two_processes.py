"""Two processes at one run folder: one trains, the other names the holder; and what signals do."""

import os
import re
import signal
import time

import pytest
from fault_runs import Command, begun, content, faults_below, tiny_run, train_run, wait_until

from relora_lab import config, train
from relora_lab.runs import RunFolder

# 25 ms a step or so: long enough to be met in the middle.
LONG = {"training": {"steps": 4000, "warm_start": 20, "checkpoint_every": 200, "norms_every": 500, "eval_every": 500}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run leaves that nothing disturbed, without stages."""
    return content(train.run(tiny_run(), tmp_path_factory.mktemp("undisturbed") / "run", cuts=()))


@pytest.fixture
def settings(tmp_path):
    """A file of the run's settings."""
    path = tmp_path / "run.toml"
    path.write_text(config.dumps(tiny_run()))
    return path


@pytest.fixture
def long_settings(tmp_path):
    """One of a run that lasts."""
    path = tmp_path / "long.toml"
    path.write_text(config.dumps(tiny_run(**LONG)))
    return path


@pytest.mark.parametrize("attempt", [0, *(pytest.param(n, marks=pytest.mark.faults) for n in range(1, 8))])
def test_of_two_that_start_together_one_trains(tmp_path, whole, settings, record_property, attempt):
    record_property("experiment", "two processes, one run folder")
    out = tmp_path / f"runs{attempt}" / "run"
    both = [Command("train", settings, "--out", out, "--resume") for _ in range(2)]
    pids = [command.process.pid for command in both]
    ended = [command.ended() for command in both]
    codes = [code for code, _ in ended]
    assert sorted(codes) == [0, 4]
    held = codes.index(4)
    (line,) = ended[held][1]
    assert re.search(rf"runs{attempt}/run: is held by process {pids[1 - held]} on \S+", line)
    assert content(out) == whole
    assert faults_below(out.parent) == []


def test_a_killed_holder_leaves_no_lock(tmp_path, whole, record_property):
    record_property("experiment", "a killed holder leaves no lock")
    out = tmp_path / "run"
    holder = begun(train_run, tiny_run(), out, fault="kill@update 45")
    holder.join()
    assert not RunFolder(out).held
    train_run(tiny_run(), out)
    assert content(out) == whole


@pytest.mark.parametrize(
    ("signum", "when"),
    [
        (signal.SIGTERM, 700),
        *(pytest.param(s, n, marks=pytest.mark.faults) for s in (signal.SIGTERM, signal.SIGINT) for n in (30, 350)),
    ],
)
def test_a_signal_saves_the_state_within_seconds(tmp_path, long_settings, record_property, signum, when):
    record_property("experiment", f"{signal.Signals(signum).name}: state saved, exit {128 + signum}, in 5 s")
    out = tmp_path / "runs" / "run"
    command = Command("train", long_settings, "--out", out)
    logged = out / "metrics.jsonl"
    wait_until(lambda: RunFolder(out).status.get("step", 0) >= when)
    os.kill(command.process.pid, signum)
    sent = time.monotonic()
    code, (line,) = command.ended()
    assert time.monotonic() - sent < 5
    assert code == 128 + signum
    step = int(re.search(rf"stopped by signal {int(signum)} at step (\d+); continue with --resume", line)[1])
    run = RunFolder(out)
    assert (run.state, run.checkpoint_step) == ("stopped", step)
    assert logged.read_text().count("\n") == step
    assert faults_below(tmp_path / "runs") == []
