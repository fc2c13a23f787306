"""kill -9 at every kind of place; the run goes on to the same bytes, with each step logged once."""

import itertools
import signal
from pathlib import Path

import pytest
import torch
from fault_runs import STEPS, content, faults_below, in_child, tiny_run, torn, train_run

from relora_lab import seeds, train
from relora_lab.data import Batches
from relora_lab.optim import state as optimizer_state
from relora_lab.runs import RunFolder

# By what a kill can break there: steps before which, or files at which. Restarts are at 34 and 48.
UPDATES = {
    "in the warm start": [13, 1, 2, 8, 9, 16, 17, 20],
    "before the first restart": [29, 21, 22, 25, 30, 33, 34],
    "between restarts": [44, 35, 36, 41, 47, 48],
    "after the last restart": [53, 49, 50, 56, 57],
    "in the last steps": [60, 58, 59],
}
STATES = [f"{step:09d}" for step in (40, 8, 16, 20, 24, 32, 48, 56, 60)]
WEIGHTS, CYCLES = ("final", "warm_start"), ("0001.json", "0002.safetensors", "0003.json")
SMALL = ("manifest.json", "config.toml", "environment.json", "status.json")
FAULTS = {f"kill −9 {where}": [f"kill@update {step}" for step in steps] for where, steps in UPDATES.items()} | {
    "kill −9 between merge and optimizer reset": ["kill@merged 1", "kill@merged 2"],
    "kill −9 as a checkpoint begins": [f"kill@begun {state}" for state in STATES[::2]],
    "kill in the middle of a checkpoint's file": [f"cut:{8_000}@begun {state}" for state in STATES[:-1]],
    "kill −9 before a checkpoint's rename": [f"kill@written {state}" for state in STATES],
    "kill −9 after a checkpoint's rename": [f"kill@renamed {state}" for state in STATES],
    "kill in the middle of weights": [f"cut:9000@begun {which}" for which in WEIGHTS],
    "kill −9 about the rename of weights": [f"kill@{when} {w}" for w in WEIGHTS for when in ("written", "renamed")],
    "kill −9 about a cycle's file": [f"kill@{when} {file}" for file in CYCLES for when in ("written", "renamed")],
    "kill −9 about a small file": [f"kill@{when} {file}" for file in SMALL for when in ("written", "renamed")],
}


# The first of each experiment always, the others in `make faults`.
CASES = [
    pytest.param(experiment, fault, marks=[pytest.mark.faults] if number else [], id=fault)
    for experiment, faults in FAULTS.items()
    for number, fault in enumerate(faults)
]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What a run leaves that nothing disturbed, without stages."""
    found = content(train.run(tiny_run(), tmp_path_factory.mktemp("undisturbed") / "run", cuts=()))
    assert [line["step"] for line in found["metrics"]] == list(range(1, STEPS + 1))
    return found


@pytest.mark.parametrize(("experiment", "fault"), CASES)
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, expected, record_property, experiment, fault):
    record_property("experiment", experiment)
    out = tmp_path / "runs" / "run"
    how = signal.SIGXFSZ if fault.startswith("cut") else signal.SIGKILL
    assert in_child(train_run, tiny_run(), out, fault=fault) == -how
    assert faults_below(tmp_path / "runs") == []
    train_run(tiny_run(), out)
    assert content(out) == expected
    assert faults_below(tmp_path / "runs") == torn(tmp_path / "runs") == []


@pytest.mark.faults
@pytest.mark.parametrize("when", ["kill@begun", "cut:1000@begun", "kill@written", "kill@renamed"])
def test_killed_as_the_text_becomes_tokens(tmp_path, expected, record_property, when):
    record_property("experiment", "kill as the text becomes tokens")
    (name,) = {path.name for path in tokens_of(tmp_path / "other")}
    out = tmp_path / "runs" / "run"
    assert in_child(train_run, tiny_run(), out, fault=f"{when} {name}") in (-signal.SIGXFSZ, -signal.SIGKILL)
    train_run(tiny_run(), out)
    assert content(out) == expected
    assert faults_below(tmp_path / "runs") == torn(tmp_path / "runs") == []


def tokens_of(runs: Path) -> list[Path]:
    """The token folders of a run that is only begun."""
    in_child(train_run, tiny_run(), runs / "run", fault="kill@update 1")
    return list((runs / ".tokens").glob("[!.]*"))


# ---- would it be noticed? What a resume needs is broken on purpose.


def without_optimizer_state():
    optimizer_state.restore = lambda *_: None


def with_batches_from_the_start():
    batch, calls = Batches.__call__, itertools.count()
    Batches.__call__ = lambda self, _: batch(self, next(calls))


def with_one_generator_for_all_factors():
    generator, common = seeds.generator, torch.Generator().manual_seed(0)
    seeds.generator = lambda seed, what, *more: common if what == "factors" else generator(seed, what, *more)


def train_broken(mutation, out):
    mutation()
    train.run(tiny_run(), out, resume=True, cuts=())


@pytest.mark.faults
@pytest.mark.parametrize(
    ("mutation", "noticed"),
    [
        (without_optimizer_state, set(UPDATES)),
        (with_batches_from_the_start, set(UPDATES)),
        # A random kill would rarely show it: the first draws are the same in a process that has just begun.
        (with_one_generator_for_all_factors, {"between restarts"}),
    ],
)
def test_a_broken_resume_is_noticed(tmp_path, record_property, mutation, noticed):
    record_property("experiment", f"a run {mutation.__name__.replace('_', ' ')} is noticed")
    assert in_child(train_broken, mutation, tmp_path / "whole") == 0
    whole, found = content(tmp_path / "whole"), set()
    for where, (step, *_) in UPDATES.items():
        out = tmp_path / f"killed at {step}".replace(" ", "-")
        assert in_child(train_broken, mutation, out, fault=f"kill@update {step}") == -signal.SIGKILL
        assert in_child(train_broken, mutation, out) == 0
        if content(out) != whole:
            found.add(where)
    assert found == noticed


def test_a_finished_run_is_not_touched_again(tmp_path, expected):
    out = train.run(tiny_run(), tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    train_run(tiny_run(), out)
    assert {
        path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock"
    }.items() <= before.items()
    assert RunFolder(out).state == "finished"
    assert content(out) == expected
