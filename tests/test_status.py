"""How far a grid is, read from its folder alone."""

import json
import os

import pytest
from conftest import changed, run

from relora_lab import stages, status
from relora_lab.errors import BadInput
from relora_lab.outcome import note_failure
from relora_lab.runs import RunFolder


@pytest.fixture
def cells(tiny):
    return {f"relora-seed{seed}": changed(tiny, training={"seed": seed}) for seed in range(5)}


@pytest.fixture
def out(cells, tmp_path):
    """A grid of which a cell has finished, one diverged, one failed, one was killed, and one waits."""
    status.declare(cells, stages.plan(cells), tmp_path)
    states = [
        {"state": "finished", "step": 60, "steps": 60, "perplexity": 21.5, "seconds_per_update": 1.0},
        {"state": "diverged", "step": 40, "steps": 60, "reason": "the mean loss rose"},
        {"state": "failed", "step": 0, "steps": 60, "reason": "data.corpus: /no: cannot be read"},
        {"state": "running", "step": 30, "steps": 60, "seconds_per_update": 3.0, "loss": 1.0},
    ]
    for name, state in zip(cells, states, strict=False):
        RunFolder(tmp_path / name).make()
        (tmp_path / name / "status.json").write_text(json.dumps(state))
    return tmp_path


def test_every_cell_has_a_line_with_what_it_has_reached_and_why_it_failed(out):
    head, left, _, title, *lines = status.as_text(status.of_folder(out)).splitlines()
    assert head == "5 cells: 1 finished, 1 diverged, 1 failed, 1 killed, 1 waiting."
    assert left == "170 updates left."  # of 5 stages of 20 updates none is made yet
    assert title.split() == ["cell", "state", "step", "perplexity", "left"]
    assert [line.split()[:4] for line in lines] == [
        ["relora-seed0", "finished", "60/60", "21.500"],
        ["relora-seed1", "diverged", "40/60", "–"],
        ["relora-seed2", "failed", "0/60", "–"],
        ["relora-seed3", "killed", "30/60", "–"],
        ["relora-seed4", "waiting", "0/60", "–"],
    ]
    assert "the mean loss rose" in lines[1]
    assert "data.corpus: /no: cannot be read" in lines[2]


def test_a_run_runs_while_a_process_holds_it_and_the_time_left_is_at_the_pace_so_far(out):
    with RunFolder(out / "relora-seed3").lock():
        found = status.of_folder(out)
        assert found.cells[3].state == "running"
        assert [cell.left for cell in found.cells] == [0, 0, 0, 30, 40]  # a warm start of 20 is shared
        assert found.shared_left == 100
        assert found.seconds_left == 30 * 3.0 + (40 + 100) * 2.0
        assert "about 6 min at this pace" in status.as_text(found)
    assert status.of_folder(out).cells[3].state == "killed"
    assert status.of_folder(out).seconds_left is None


def test_stages_in_training_count_too(out):
    stage = RunFolder(out / ".stages" / "abc-20")
    stage.make()
    stage.write_status("running", step=15, steps=20)
    with stage.lock():
        found = status.of_folder(out)
    assert (found.stages_running, found.shared_left) == (1, 85)
    assert "stages in training: 1." in status.as_text(found)


def test_watching_ends_when_all_is_done(out, capsys):
    for path in (out / "relora-seed3", out / "relora-seed4"):
        RunFolder(path).make()
        RunFolder(path).write_status("finished", step=60, steps=60)
    code, said, _ = run(capsys, "status", out, "--watch")
    assert code == 0
    assert "5 cells: 3 finished, 1 failed, 1 diverged." in said
    lines = [line.split()[0] for line in said.splitlines() if line.startswith("relora")]
    assert lines[:2] == ["relora-seed2", "relora-seed1"]  # the failed one, the diverged one


def test_a_damaged_status_is_a_line_of_its_own_cell(out):
    (out / "relora-seed4").mkdir()
    (out / "relora-seed4" / "status.json").write_text("{")
    found = status.of_folder(out)
    assert found.cells[4].state == "damaged"
    assert "status.json: is damaged" in status.as_text(found)


def test_looking_keeps_nobody_out(out):
    run_folder = RunFolder(out / "relora-seed3")
    with run_folder.lock():
        pass
    assert not run_folder.held
    with run_folder.lock():
        assert run_folder.held


def test_of_many_cells_those_that_need_a_look_are_listed_or_all(tiny, tmp_path, capsys):
    cells = {f"relora-seed{seed}": changed(tiny, training={"seed": seed}) for seed in range(60)}
    status.declare(cells, stages.plan(cells), tmp_path)
    note_failure(RunFolder(tmp_path / "relora-seed7"), cells["relora-seed7"], "no memory")
    code, out, _ = run(capsys, "status", tmp_path)
    assert (code, out.splitlines()[:2]) == (0, ["60 cells: 59 waiting, 1 failed.", "3,560 updates left."])
    assert [line.split()[0] for line in out.splitlines()[4:]] == ["relora-seed7"]
    _, out, _ = run(capsys, "status", tmp_path, "--all")
    assert len(out.splitlines()) == 64


def test_runs_beside_the_grid_are_listed_and_a_folder_without_any_is_refused(out, tiny, tmp_path, capsys):
    note_failure(RunFolder(out / "alone"), changed(tiny), "x")
    assert [cell.name for cell in status.of_folder(out).cells][-1] == "alone"
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        code, _, err = run(capsys, "status", tmp_path / folder)
        assert code == 2
        assert len(err.splitlines()) == 1
        assert folder in err


def test_a_cell_that_has_begun_with_other_settings_is_refused_before_anything_runs(cells, out, tiny):
    other = {"relora-seed0": changed(tiny, optimizer={"lr": 1e-2})}
    status.declare(other, stages.plan(other), out)  # it failed before it began: its settings can be mended
    run_folder = RunFolder(out / "relora-seed0")
    run_folder.write_config(cells["relora-seed0"])
    run_folder.write_environment({})
    changes = r"optimizer\.lr changed from 0\.003 to 0\.05"
    another = {"relora-seed0": changed(tiny, optimizer={"lr": 5e-2})}
    with pytest.raises(BadInput, match=changes):
        status.declare(another, stages.plan(another), out)


def test_a_grid_of_a_newer_version_is_refused(out):
    facts = json.loads((out / "grid.json").read_text())
    (out / "grid.json").write_text(json.dumps(facts | {"schema_version": 99}))
    with pytest.raises(BadInput, match=r"grid\.json: written by a newer version \(schema 99"):
        status.of_folder(out)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (99, "99 s"), (600, "10 min"), (7500, "2 h 05 min"), (200000, "2 d 7 h")]
)
def test_durations_are_said_as_people_say_them(seconds, words):
    assert status.duration(seconds) == words


def test_text_of_others_cannot_move_the_cursor(out):
    reason = {"state": "failed", "step": 0, "steps": 60, "reason": "\x1b[2J\nx"}
    (out / "relora-seed2" / "status.json").write_text(json.dumps(reason))
    assert "\x1b" not in status.as_text(status.of_folder(out))


def test_the_process_that_writes_a_status_is_in_it(out, cells):
    note_failure(RunFolder(out / "relora-seed4"), cells["relora-seed4"], "x")
    assert RunFolder(out / "relora-seed4").status["process"] == os.getpid()
