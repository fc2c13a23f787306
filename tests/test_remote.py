"""Jobs on other machines: what their workers say reaches the driver through the folder that they share."""

import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import changed

from relora_lab import stages
from relora_lab.errors import BadInput, FolderHeld
from relora_lab.launch import engine, jobs, remote
from relora_lab.launch.worker import Outcome
from relora_lab.runs import RunFolder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def tasks(tiny, out):
    """The tokens, the stage and the cell of one run, in their order."""
    cells = {"cell": changed(tiny)}
    return [engine.begun(job, out) for job in jobs.of_grid(cells, stages.plan(cells), out)]


def test_a_worker_says_in_which_folder_a_stage_shows_and_how_each_job_went(tasks, out):
    words = remote.Words(out)
    for task in tasks:
        assert words.hear(task) is None
        assert remote.do(task.job, words.place) == words.hear(task) == Outcome("done")
    tokens, stage, cell = tasks
    assert (tokens.folder, stage.folder.path.parent, cell.folder.path) == (None, out / ".stages", out / "cell")
    assert stage.step == 20
    assert cell.folder.state == "finished"
    words.forget(cell.job)
    assert words.hear(cell) is None
    words.close(over=True)
    assert not words.folder.exists()


def test_an_exception_is_an_outcome_and_noted_in_the_cell(tasks, out, monkeypatch):
    cell, words = tasks[-1], remote.Words(out)
    monkeypatch.setattr("relora_lab.train.run", lambda *_, **__: 1 / 0)
    assert remote.do(cell.job, words.place) == Outcome("failed", "ZeroDivisionError: division by zero")
    assert words.hear(cell).how == "failed"
    assert RunFolder(out / "cell").status["reason"] == "ZeroDivisionError: division by zero"


def test_relative_paths_of_the_settings_are_the_drivers(tiny, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(tiny["data"]["corpus"], "text.txt")
    words = remote.Words(Path("runs"))
    monkeypatch.chdir("/")
    config = changed(tiny, data={"corpus": "text.txt"}, training={"warm_start": 0})
    assert remote.do(jobs.Job("cell", "cell", "cell", config), words.place) == Outcome("done")
    assert RunFolder(out / "cell").ended


@pytest.mark.parametrize("there", ["nothing", "another grid"])
def test_a_worker_that_does_not_see_the_drivers_folder_refuses(tasks, out, tmp_path, there):
    place = remote.Words(out).place
    elsewhere = tmp_path / "elsewhere"
    if there == "another grid":
        remote.Words(elsewhere)
    with pytest.raises(BadInput, match=f"--out {elsewhere}: is another folder on .*; all machines of a grid need to"):
        remote.do(tasks[-1].job, place._replace(out=elsewhere))
    assert not (elsewhere / "cell").exists()


def test_a_lock_that_a_worker_cannot_see_ends_the_grid(tasks, out):
    words = remote.Words(out)
    words.forget(tasks[0].job)
    words.close(over=False)  # as if its lock did not reach the worker
    remote.do(tasks[0].job, words.place)
    with pytest.raises(BadInput, match=r"a lock held here is not seen on .*mount it with flock"):
        words.hear(tasks[0])


def test_a_job_that_began_while_no_driver_was_there_is_taken_up(tasks, out):
    first = remote.Words(out)
    first.close(over=False)
    remote.do(tasks[0].job, first.place)
    second = remote.Words(out)
    assert second.place == first.place
    assert second.hear(tasks[0]) == Outcome("done")
    assert second.shared_and_done(tasks[0].job)


def test_there_is_one_driver(out):
    words = remote.Words(out)
    with pytest.raises(FolderHeld, match="is held by process"):
        remote.Words(out)
    words.close(over=True)
    remote.Words(out)


def test_what_cannot_be_read_has_not_been_said(tasks, out):
    words = remote.Words(out)
    remote.do(tasks[0].job, words.place)
    [word] = words.folder.glob("*.json")
    word.write_text("{")
    assert words.hear(tasks[0]) is None


def test_one_silent_death_is_a_death_but_the_first_sign_of_a_cluster_is_an_error(tasks, out):
    words = remote.Words(out)
    with pytest.raises(BadInput, match="no python"):
        words.silent_death("no python")
    remote.do(tasks[0].job, words.place)
    words.hear(tasks[0])
    assert words.silent_death("no memory") == Outcome("died", "no memory")


def test_numbers_of_queued_jobs_are_there_for_the_next_driver(tasks, out):
    job, words = tasks[-1].job, remote.Words(out)
    assert words.number(job) == ""
    words.note_number(job, "123_4")
    words.close(over=True)  # of another grid in this folder, say
    words = remote.Words(out)
    assert words.number(job) == "123_4"
    words.note_number(job, "")
    words.close(over=True)
    assert not words.folder.exists()


def test_what_a_job_asks_for(tiny):
    cell = jobs.Job("cell", "c", "c", changed(tiny, training={"threads": 3, "device": "cuda"}))
    assert remote.resources(cell) == (3, 1)
    tokens = jobs.Job("tokens", "t", "t", cell.config)
    assert remote.resources(tokens) == (3, 0)


def test_a_word_is_plain_json(tasks, out):
    words = remote.Words(out)
    remote.do(tasks[0].job, words.place)
    [word] = words.folder.glob("*.json")
    assert json.loads(word.read_text())["host"] == os.uname().nodename


def test_a_job_that_another_process_is_at_is_waited_for(tasks, out, monkeypatch):
    cell, words, held = tasks[-1], remote.Words(out), ExitStack()
    cell.folder.make()
    held.enter_context(cell.folder.lock())
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        if seconds == remote.HELD_SECONDS:
            held.close()

    monkeypatch.setattr(remote.time, "sleep", sleep)
    assert remote.do(cell.job, words.place) == Outcome("done")
    assert waited.count(remote.HELD_SECONDS) == 1
