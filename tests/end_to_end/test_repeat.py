"""The same settings give the same bytes: again, through a stage or without it, in every method after kill −9 too.

Kills at every kind of place are in faults/test_kills.py.
"""

import multiprocessing
import os
import signal
import time

import pytest
from conftest import changed, tiny_tables

from relora_lab import stages, train, trainer
from relora_lab.errors import BadInput, FolderHeld, Interrupted
from relora_lab.runs import RunFolder, snapshot

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["relora_lab.train", "transformers.models.llama.modeling_llama"])
SNAPSHOTS = {"snapshot_every": 6}  # 24, 30, ..., 54; checkpoints are at 24, 32, ..., restarts at 34 and 48


def content(folder):
    """Everything a run leaves but times: bytes of the weights and cycles, lines of the logs."""
    run = RunFolder(folder)
    logs = {log: run.logs.read(log) for log in ("metrics", "eval", "norms")}
    for line in logs["metrics"]:
        del line["tokens_per_second"]
    kept = ("warm_start/*", "final/*", "cycles/*", "snapshots/*/*")
    weights = [path for pattern in kept for path in run.path.glob(pattern)]
    return logs | {path.relative_to(run.path).as_posix(): path.read_bytes() for path in weights}


def train_and_die(config, out, at, how):
    """Train, and be killed before the update after step `at`."""
    update = trainer.Trainer._update

    def dying(self):
        if self.state.step == at:
            os.kill(os.getpid(), how)
        return update(self)

    trainer.Trainer._update = dying
    train.run(config, out, resume=True)


def in_child(*arguments):
    child = CONTEXT.Process(target=train_and_die, args=arguments)
    child.start()
    child.join(120)
    return child.exitcode


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """A run that nothing disturbed, without stages."""
    config = changed(tiny_tables())
    return content(train.run(config, tmp_path_factory.mktemp("undisturbed") / "run", cuts=()))


def test_again_and_through_a_stage(tmp_path, tiny, expected):
    config = changed(tiny)
    for name in ("one", "two"):  # the first trains the stage, the second finds it
        assert content(train.run(config, tmp_path / name)) == expected
    assert len(list((tmp_path / ".stages").iterdir())) == 1


@pytest.mark.parametrize(
    ("method", "training"),
    [
        # A cycle whose factors do not start at zero, begun by a reset without a merge, a base of zero, a reference.
        ({"name": "lora", "rank": 2, "restart_every": 14, "restart_warmup": 3, "optimizer_reset": "random"}, {}),
        ({"name": "relora", "rank": 2, "base": "zero", "restart_every": 44, "restart_warmup": 3}, {"warm_start": 0}),
        ({"name": "lora", "rank": 2}, {"reference_step": 30}),
        ({"name": "full"}, {"warm_start": 0, "reference_step": 50}),
    ],
)
def test_after_kill_9_in_other_methods(tmp_path, tiny, method, training):
    config, out = changed(tiny, method=method, training=training), tmp_path / "run"
    assert in_child(config, out, 43, signal.SIGKILL) == -signal.SIGKILL
    alone = train.run(config, tmp_path / "alone" / "run", cuts=())
    assert content(train.run(config, out, resume=True)) == content(alone)


def test_a_warm_start_is_the_prefix_of_the_full_run(tmp_path, tiny):
    full = changed(tiny, method={"name": "full"}, training={"warm_start": 0, "reference_step": 20})
    relora = changed(tiny)
    runs = [
        RunFolder(train.run(config, tmp_path / name)) for name, config in {"full": full, "relora": relora}.items()
    ]
    assert len(list((tmp_path / ".stages").iterdir())) == 1
    prefixes = [[line["loss"] for line in run.logs.read("metrics")[:20]] for run in runs]
    assert prefixes[0] == prefixes[1]
    weights = [run.path / "warm_start" / "model.safetensors" for run in runs]
    assert weights[0].stat().st_ino == weights[1].stat().st_ino  # linked, not copied
    later = changed(tiny, training={"warm_start": 30, "reference_step": 20})
    train.run(later, tmp_path / "later")
    assert len(list((tmp_path / ".stages").iterdir())) == 2  # 0 to 20 is shared, 20 to 30 is new


@pytest.fixture
def full_rank(monkeypatch):
    """The steps from which full-rank updates are made, as they come."""
    steps, update = [], trainer.Trainer._update

    def counting(self):
        steps.extend([self.state.step] if not self.state.layers else [])
        return update(self)

    monkeypatch.setattr(trainer.Trainer, "_update", counting)
    return steps


def test_each_full_rank_step_of_several_warm_starts_is_trained_once(tmp_path, tiny, full_rank):
    configs = [changed(tiny, training={"warm_start": warm_start}) for warm_start in (10, 24, 31)]
    shared = [train.run(config, tmp_path / f"run{i}") for i, config in enumerate(configs)]
    assert full_rank == list(range(31))
    alone = [train.run(config, tmp_path / "alone" / f"run{i}", cuts=()) for i, config in enumerate(configs)]
    assert [content(run) for run in shared] == [content(run) for run in alone]


def test_stages_of_a_chain_give_the_bits_of_a_run_without(tmp_path, tiny):
    config = changed(tiny, training={"warm_start": 30, "reference_step": 20})
    shared, alone = (train.run(config, tmp_path / str(cuts) / "run", cuts=cuts) for cuts in (None, ()))
    assert content(shared) == content(alone)


def test_a_signal_saves_the_state_and_the_run_goes_on_from_there(tmp_path, tiny, expected, monkeypatch):
    config, out = changed(tiny), tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="stopped by signal 15 at step 38"):
        update = trainer.Trainer._update

        def interrupted(self):
            if self.state.step == 37:
                os.kill(os.getpid(), signal.SIGTERM)
            return update(self)

        patch.setattr(trainer.Trainer, "_update", interrupted)
        train.run(config, out)
    assert RunFolder(out).status["state"] == "stopped"
    assert RunFolder(out).status["step"] == 38
    assert content(train.run(config, out, resume=True)) == expected


@pytest.mark.parametrize("step", [25, 50])
def test_a_signal_in_an_evaluation_is_heard_and_it_is_made_by_the_run_that_goes_on(
    tmp_path, tiny, expected, monkeypatch, step
):
    config, out = changed(tiny), tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match=f"stopped by signal 15 at step {step}"):
        evaluate = trainer.Trainer._evaluate

        def interrupted(self, signals=()):
            if self.state.step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            evaluate(self, signals)

        patch.setattr(trainer.Trainer, "_evaluate", interrupted)
        train.run(config, out)
    assert RunFolder(out).logs.read("eval")[-1]["step"] < step
    assert content(train.run(config, out, resume=True)) == expected


@pytest.fixture(scope="module")
def with_snapshots(tmp_path_factory):
    """A run that keeps snapshots, which nothing disturbed, without stages."""
    config = changed(tiny_tables(), training=SNAPSHOTS)
    return RunFolder(train.run(config, tmp_path_factory.mktemp("snapshots") / "run", cuts=()))


def manifest(folder):
    """The manifest but for the log that holds times."""
    return {name: hashed for name, hashed in RunFolder(folder).manifest.items() if name != "metrics.jsonl"}


def test_snapshots_change_nothing_else(expected, with_snapshots):
    found = content(with_snapshots.path)
    snapshots = {name for name in found if name.startswith("snapshots/")}
    assert len(snapshots) == 4 * len(with_snapshots.snapshots) == 4 * 6
    assert {name: found[name] for name in found.keys() - snapshots} == expected


@pytest.mark.parametrize("at", [23, 24, 25, 47, 48, 49, 59])
def test_snapshots_after_kill_9_and_resume(tmp_path, tiny, with_snapshots, at):
    """Before and after the first, which is a checkpoint's step; with one since the checkpoint; about a restart's."""
    config, out = changed(tiny, training=SNAPSHOTS), tmp_path / "run"
    assert in_child(config, out, at, signal.SIGKILL) == -signal.SIGKILL
    assert list(RunFolder(out).snapshots) == [step for step in with_snapshots.snapshots if step <= at]
    train.run(config, out, resume=True)
    assert content(out) == content(with_snapshots.path)
    assert manifest(out) == manifest(with_snapshots.path)


@pytest.mark.parametrize("step", [24, 42, 48])
def test_a_snapshot_that_failed_is_there_when_the_run_went_on(tmp_path, tiny, monkeypatch, with_snapshots, step):
    """Also where a checkpoint is due at its step: that one comes later."""
    config, out, write = changed(tiny, training=SNAPSHOTS), tmp_path / "run", RunFolder.write_weights

    def full(self, which, *arguments):
        if which == snapshot(step):
            raise OSError("disk full")
        write(self, which, *arguments)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(RunFolder, "write_weights", full)
        train.run(config, out)
    train.run(config, out, resume=True)
    assert content(out) == content(with_snapshots.path)
    assert manifest(out) == manifest(with_snapshots.path)


def test_runs_with_and_without_snapshots_share_their_stages(tmp_path, tiny, full_rank):
    """Cut at the reference step, 10, and at the end of the warm start, 20, from which snapshots are kept."""
    configs = [changed(tiny, training={"reference_step": 10, "snapshot_every": every}) for every in (3, 7)]
    configs += [changed(tiny, training={"reference_step": 10})]
    runs = [RunFolder(train.run(config, tmp_path / f"run{i}")) for i, config in enumerate(configs)]
    assert full_rank == list(range(20))
    assert [len(run.snapshots) for run in runs] == [13, 6, 0]
    assert sorted(stage.name.rpartition("-")[2] for stage in tmp_path.glob(".stages/*")) == ["10", "20"]
    assert len({stages.stage_config(config, 20) for config in configs}) == 1


def test_a_full_rank_run_with_snapshots_begins_with_the_stage_of_the_others(tmp_path, tiny):
    train.run(changed(tiny), tmp_path / "relora")
    training = {"warm_start": 0, "reference_step": 20, "snapshot_every": 10}
    config = changed(tiny, method={"name": "full"}, training=training)
    shared, alone = (train.run(config, tmp_path / at / "run", cuts=cuts) for at, cuts in ((".", None), ("alone", ())))
    assert len(list(tmp_path.glob(".stages/*"))) == 1
    assert list(RunFolder(shared).snapshots) == [30, 40, 50]
    assert content(shared) == content(alone)


def test_a_run_cannot_go_on_with_other_snapshots(tmp_path, tiny):
    """Its folder would hold those of one part only."""
    out = train.run(changed(tiny), tmp_path / "run")
    with pytest.raises(BadInput, match=r"cannot resume with training\.snapshot_every changed from None to 6"):
        train.run(changed(tiny, training=SNAPSHOTS), out, resume=True)


def test_a_folder_is_trained_by_one_process_at_a_time(tmp_path, tiny):
    config, out = changed(tiny), tmp_path / "run"
    child = CONTEXT.Process(target=train_and_die, args=(config, out, 30, signal.SIGSTOP))
    child.start()
    try:
        for _ in range(600):
            if RunFolder(out).has_checkpoint and RunFolder(out).state == "running":
                break
            time.sleep(0.05)
        with pytest.raises(FolderHeld, match=f"held by process {child.pid} on"):
            train.run(config, out, resume=True)
    finally:
        child.kill()
        child.join()


def test_resuming_another_run_is_refused_with_old_and_new(tmp_path, tiny):
    out = train.run(changed(tiny), tmp_path / "run")
    with pytest.raises(BadInput, match=r"method\.rank changed from 2 to 3"):
        train.run(changed(tiny, method={"rank": 3}), out, resume=True)
    with pytest.raises(BadInput, match=r"holds a run \(finished\)"):
        train.run(changed(tiny), out)
    text = tmp_path / "text.txt"
    text.write_text("one " * 2000)
    config = changed(tiny, data={"corpus": str(text)})
    other = train.run(config, tmp_path / "other")
    text.write_text("two " * 2000)
    with pytest.raises(BadInput, match="cannot resume with another corpus"):
        train.run(config, other, resume=True)


@pytest.mark.parametrize("what", ["threads", "instruction set"])
def test_another_machine_may_go_on_and_that_is_recorded(tmp_path, tiny, monkeypatch, what):
    out = tmp_path / "run"
    assert in_child(changed(tiny), out, 41, signal.SIGKILL) == -signal.SIGKILL
    assert RunFolder(out).environment["bit_identical"] is True
    if what == "instruction set":
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "ANOTHER")
    train.run(changed(tiny, training={"threads": 2 if what == "threads" else 1}), out, resume=True)
    assert RunFolder(out).state == "finished"
    assert RunFolder(out).environment["bit_identical"] is False
