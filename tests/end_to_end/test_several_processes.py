"""Two processes of torchrun train the run that one trains, whatever happens to them. This file is their script."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import changed, tiny_tables

from relora_lab import cli, config, processes, torchrun, train
from relora_lab.errors import BadInput, Interrupted
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig
from relora_lab.trainer import Trainer

RESTARTS = {"rank": 2, "restart_every": 14, "restart_warmup": 3}
VARIANTS = {
    "relora": {},
    "micro-batches": {
        "method": {"optimizer_reset": "magnitude", "reset_ratio": 0.9},
        "training": {"micro_batches": 5, "gradient_checkpointing": True},
        "data": {"batch_size": 10},  # parts of 2, 2 and 1 sequences
    },
    "online_relora": {"method": {"name": "online_relora", **RESTARTS, "merge_every": 5}},
    "redora": {"method": {"name": "redora", **RESTARTS}},
    "repissa": {"method": {"name": "repissa", **RESTARTS}},
    "galore": {"method": {"name": "galore", "rank": 2, "gap": 20}, "training": {"warm_start": 0}},
    "adam_mini": {"method": {"name": "adam_mini"}, "training": {"warm_start": 0}},
    "diverges": {"optimizer": {"low_rank_lr": 100.0, "clip": float("inf")}},
    "clipped": {"optimizer": {"clip": 0.05, "eps": 1e-3}},  # below every norm; Adam would undo it but for eps
}


def variant(name: str) -> RunConfig:
    """The settings of a variant; all but the first are shorter."""
    parts = {part: dict(values) for part, values in VARIANTS[name].items()}
    if name != "relora":
        parts["training"] = {"steps": 44, **parts.get("training", {})}
    return changed(tiny_tables(), **parts)


# ---- in a process of torchrun


def run_all(todo: Path) -> None:
    """Train all variants in a folder, and write down what stops the processes."""
    with processes.joined():
        for settings in sorted(todo.glob("*.toml")):
            train.run(config.load(settings), todo / settings.stem)
        me, stops = processes.rank(), []
        for stop in (
            lambda: processes.require_same({"torch": "2.6", "text": f"text {me}"}),
            lambda: processes.require_same_weights({"a": torch.ones(2), "b": torch.tensor([1.0, me])}),
            lambda: fail_together(me),
            lambda: train.run(config.load(todo / "refused"), todo / "none" / "run"),
            lambda: stop_one(me, todo),
        ):
            try:
                stop()
            except (BadInput, RuntimeError, Interrupted) as error:
                stops.append(f"{type(error).__name__}: {error}")
        (todo / f"stops-{me}.json").write_text(json.dumps(stops))
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in threads if "gloo" in name]  # they could end the process in the middle of its exit


def fail_together(me: int) -> None:
    """Process 1 cannot read its text."""
    with processes.together():
        if me == 1:
            raise BadInput("data.corpus: cannot be read")


def stop_one(me: int, todo: Path) -> None:
    """Process 1 gets a signal."""
    update = Trainer._update

    def stopped(self):
        if me == 1 and self.state.step == 25:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self)

    Trainer._update = stopped
    train.run(config.load(todo / "relora.toml"), todo / "stopped")


def command(at: str, rank: str, how: str, notes: str, *arguments: str) -> None:
    """The command. Before the update after step `at` one process fails, is killed, or tells torchrun to stop."""
    update, step = Trainer._update, 0

    def disturbed(self):
        nonlocal step
        if self.state.step == int(at) and processes.rank() == int(rank):
            if how == "raise":
                raise MemoryError("none is left here")
            os.kill(os.getpid() if how == "KILL" else os.getppid(), signal.Signals[f"SIG{how}"])
        if self.state.step >= int(at):
            time.sleep(0.05)  # time to hear of it
        try:
            return update(self)
        finally:
            step = self.state.step

    Trainer._update = disturbed
    try:
        cli.main(list(arguments))
    except SystemExit as stop:
        (Path(notes) / f"{torchrun.rank()}.json").write_text(json.dumps([stop.code, step]))
        raise


# ---- tests


def two_processes(*script: object) -> subprocess.CompletedProcess:
    """This script under torchrun."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    given = [str(argument) for argument in script]
    return subprocess.run([*launch, *given], capture_output=True, text=True, env=environment, timeout=120)


def content(folder: RunFolder) -> tuple[set[str], list[float]]:
    """The files of a run, and the loss of every update and evaluation."""
    files = {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file()}
    return files, [line["loss"] for log in ("metrics", "eval") for line in folder.logs.read(log)]


@pytest.fixture(scope="module")
def variants(tmp_path_factory):
    """The folder with every variant, trained by two processes."""
    todo = tmp_path_factory.mktemp("two")
    for name in VARIANTS:
        (todo / f"{name}.toml").write_text(config.dumps(variant(name)))
    (todo / "refused").write_text(config.dumps(changed(tiny_tables(), data={"batch_size": 5})))
    done = two_processes("run_all", todo)
    assert done.returncode == 0, done.stderr
    return todo


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "diverges"])
def test_two_processes_train_what_one_does(tmp_path, variants, name):
    two, one = RunFolder(variants / name), RunFolder(train.run(variant(name), tmp_path / name))
    files, losses = content(one)
    assert len(losses) > {"relora": 60}.get(name, 44)
    assert content(two)[0] == files
    assert content(two)[1] == pytest.approx(losses, abs=1e-5)
    assert two.state == "finished"
    for ours, theirs in zip(two.cycle_facts(), one.cycle_facts(), strict=True):
        assert ours["end"] == theirs["end"]
        assert ours.get("loss_before") == pytest.approx(theirs.get("loss_before"), abs=1e-5)
        assert ours.get("loss_after") == pytest.approx(theirs.get("loss_after"), abs=1e-5)
    assert (two.environment["processes"], one.environment.get("processes")) == (2, None)
    for log in ("metrics", "eval"):
        assert [line["tokens"] for line in two.logs.read(log)] == [line["tokens"] for line in one.logs.read(log)]


def test_two_processes_have_the_bits_of_one_with_two_micro_batches(tmp_path, variants):
    halves = changed(tiny_tables(), training={"micro_batches": 2})
    one = RunFolder(train.run(halves, tmp_path / "run"))
    assert content(RunFolder(variants / "relora"))[1] == content(one)[1]


def test_divergence_is_a_result_of_all(tmp_path, variants):
    two, one = RunFolder(variants / "diverges"), RunFolder(train.run(variant("diverges"), tmp_path / "run"))
    assert two.state == one.state == "diverged"
    assert two.status["step"] == one.status["step"]
    assert content(two)[0] == content(one)[0]


def test_what_stops_one_process_stops_all_and_they_say_the_same(variants):
    stops = [json.loads((variants / f"stops-{rank}.json").read_text()) for rank in (0, 1)]
    assert stops[0] == stops[1]
    assert stops[0] == [
        "BadInput: text: is text 0 in process 0 and text 1 in process 1 of the same run",
        "RuntimeError: b is no longer the same in all 2 processes",
        "BadInput: process 1: data.corpus: cannot be read",
        "BadInput: data.batch_size: 5 sequences cannot be shared out to 2 processes",
        "Interrupted: stopped by signal 15 at step 26; continue with --resume",
    ]
    assert not (variants / "none").exists()


def test_a_run_goes_on_in_another_number_of_processes_after_any_stop(tmp_path, tiny, monkeypatch):
    """SIGTERM to torchrun; then one process, until it fails; then two, of which one is killed; then two."""
    settings, out = tmp_path / "run.toml", tmp_path / "two" / "run"
    run, folder = changed(tiny), RunFolder(out)
    settings.write_text(config.dumps(run))

    def train_in_two(at, rank, how):
        arguments = ("train", settings, "--out", out, "--resume")
        done = two_processes("command", at, rank, how, tmp_path, *arguments)
        notes = [tmp_path / f"{rank}.json" for rank in (0, 1)]
        return done, [json.loads(path.read_text()) for path in notes if path.exists()]

    done, ended = train_in_two(27, 1, "TERM")
    step = folder.status["step"]
    assert 27 < step < 50
    assert folder.state == "stopped"
    assert ended == [[143, step], [143, step]]
    assert folder.checkpoint_step == step == len(folder.logs.read("metrics"))
    assert done.stderr.count("relora-lab: stopped by signal 15 at step") == 1

    update = Trainer._update
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Trainer, "_update", lambda self: update(self) if self.state.step < 50 else 1 / 0)
        train.run(run, out, resume=True)
    assert folder.checkpoint_step == 48

    done, _ = train_in_two(57, 1, "KILL")
    assert done.returncode != 0
    assert folder.checkpoint_step == 56
    assert folder.state in ("running", "failed")

    done, ended = train_in_two(99, 0, "none")
    assert (done.returncode, ended) == (0, [[0, 60], [0, 60]])
    assert done.stdout == f"{folder.summary()}\n"
    assert folder.environment["bit_identical"] is False
    files, losses = content(RunFolder(train.run(run, tmp_path / "one" / "run")))
    assert content(folder)[0] == files
    assert content(folder)[1] == pytest.approx(losses, abs=1e-5)


def test_what_ends_the_leader_ends_all_and_is_said_once(tmp_path, tiny):
    settings, folder = tmp_path / "run.toml", RunFolder(tmp_path / "runs" / "run")
    settings.write_text(config.dumps(changed(tiny)))
    folder.make()
    with folder.lock():
        done = two_processes("command", 99, 0, "none", tmp_path, "train", settings, "--out", folder.path)
    said = [line for line in done.stderr.splitlines() if line.startswith("relora-lab:")]
    assert len(said) == 1
    assert f"is held by process {os.getpid()}" in said[0]
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [[4, 0], [4, 0]]


def test_why_one_process_failed_is_what_the_run_says(tmp_path, tiny):
    settings, folder = tmp_path / "run.toml", RunFolder(tmp_path / "runs" / "run")
    settings.write_text(config.dumps(changed(tiny)))
    done = two_processes("command", 27, 1, "raise", tmp_path, "train", settings, "--out", folder.path)
    assert done.returncode != 0
    assert folder.state == "failed"
    assert folder.status["reason"] == "RuntimeError: process 1 failed: MemoryError: none is left here"


if __name__ == "__main__":
    if sys.argv[1] == "run_all":
        run_all(Path(sys.argv[2]))
    else:
        command(*sys.argv[2:])
