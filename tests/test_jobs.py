"""In which order a grid's jobs are given out, and what becomes of those that fail or whose process dies."""

import pytest
from conftest import changed
from hypothesis import given
from hypothesis import strategies as st

from relora_lab import stages
from relora_lab.launch import jobs
from relora_lab.launch.jobs import DEATHS, Job, Schedule
from relora_lab.runs import RunFolder


@pytest.fixture
def cells(tiny):
    full = {"method": {"name": "full"}, "training": {"warm_start": 0, "reference_step": 20}}
    return {
        "full": changed(tiny, **full),
        "relora": changed(tiny),
        "pruned": changed(tiny, method={"optimizer_reset": "magnitude"}),
        "other": changed(tiny, data={"corpus": pytest.__file__}),
    }


def of_grid(cells, out):
    return jobs.of_grid(cells, stages.plan(cells), out)


def test_what_cells_share_comes_before_them_and_once(cells, tmp_path):
    found = of_grid(cells, tmp_path)
    assert jobs.saved(found) == "Sharing saves 53 of 240 updates (22 %)."
    assert [(job.kind, job.start, job.end) for job in found] == [
        ("tokens", 0, 0),
        ("stage", 0, 20),
        ("cell", 20, 60),  # full
        ("stage", 20, 33),
        ("cell", 33, 60),  # relora
        ("cell", 33, 60),  # pruned
        ("tokens", 0, 0),
        ("stage", 0, 20),  # of another text
        ("cell", 20, 60),
    ]
    known = set()
    for job in found:
        assert known.issuperset(job.needs)
        known.add(job.key)


def test_ended_cells_are_left_out_with_what_only_they_needed(cells, tmp_path):
    for name in ("full", "other"):
        RunFolder(tmp_path / name).make()
        RunFolder(tmp_path / name).write_status("finished", step=60)
    assert [job.name for job in of_grid(cells, tmp_path) if job.kind == "cell"] == ["relora", "pruned"]
    assert sum(job.kind == "tokens" for job in of_grid(cells, tmp_path)) == 1


def chain(tiny, needs):
    """Jobs j0, j1, ... of which each needs those that `needs` says."""
    config = changed(tiny)
    return [Job("cell", f"j{n}", f"j{n}", config, needs=tuple(f"j{m}" for m in of)) for n, of in enumerate(needs)]


def test_a_job_is_given_out_when_its_needs_are_done_and_only_once(tiny):
    schedule = Schedule(chain(tiny, [(), (0,), (), (1, 2)]))
    first, third = schedule.next(), schedule.next()
    assert (first.key, third.key, schedule.next()) == ("j0", "j2", None)
    schedule.done(first)
    second = schedule.next()
    assert second.key == "j1"
    schedule.done(second)
    assert schedule.next() is None
    schedule.done(third)
    assert schedule.next().key == "j3"
    assert schedule.left


def test_a_failure_takes_with_it_what_needs_it_and_nothing_else(tiny):
    schedule = Schedule(chain(tiny, [(), (0,), (1,), ()]))
    failed = [(job.key, reason) for job, reason in schedule.failed(schedule.next(), "no text")]
    assert failed == [("j0", "no text"), ("j1", "no text"), ("j2", "no text")]
    last = schedule.next()
    assert last.key == "j3"
    schedule.done(last)
    assert not schedule.left
    assert schedule.failures.keys() == {"j0", "j1", "j2"}


def test_a_job_whose_process_dies_is_tried_again_while_it_leaves_newer_states(tiny):
    schedule = Schedule(chain(tiny, [()]))
    job = schedule.next()
    for step in range(3 * DEATHS):
        assert schedule.may_die(job, step)
    assert [schedule.may_die(job, 29) for _ in range(DEATHS - 1)] == [True] * (DEATHS - 2) + [False]


def test_what_another_process_holds_comes_again_later_and_others_go_first(tiny):
    schedule = Schedule(chain(tiny, [(), ()]))
    schedule.again(schedule.next(), seconds=1000)
    assert schedule.next().key == "j1"
    assert schedule.next() is None
    assert schedule.left


@given(st.lists(st.sampled_from(["done", "failed", "died", "again"]), max_size=40), st.integers(0, 2**32))
def test_whatever_happens_every_job_is_done_or_has_failed_in_the_end(happens, seed):
    from conftest import tiny_tables

    needs = [tuple(m for m in range(n) if (seed >> (n * 3 + m)) & 1) for n in range(6)]
    schedule = Schedule(chain(tiny_tables(), needs))
    what = iter(happens)
    while (job := schedule.next()) is not None:
        match next(what, "done"):
            case "done":
                schedule.done(job)
            case "failed":
                list(schedule.failed(job, "x"))
            case "died" if not schedule.may_die(job, 0):
                list(schedule.failed(job, "x"))
            case _:
                schedule.again(job)
    assert not schedule.left
