"""What a grid would do, before it does anything."""

import pytest
from conftest import changed, run

from relora_lab import dry_run, stages
from relora_lab.errors import BadInput
from relora_lab.memory.phases import peak
from relora_lab.pace import Pace
from relora_lab.runs import RunFolder


def cells_of(tiny, seeds=(0, 1)):
    full = {"method": {"name": "full"}, "training": {"warm_start": 0, "reference_step": 20}}
    rows = {"full": full, "relora": {}, "pruned": {"method": {"optimizer_reset": "magnitude"}}}
    return {
        f"{row}-seed{seed}": changed(tiny, **{**parts, "training": {**parts.get("training", {}), "seed": seed}})
        for seed in seeds
        for row, parts in rows.items()
    }


def text(cells, out, seconds=lambda _, start, end: 2.0 * (end - start)):
    return dry_run.as_text(cells, stages.plan(cells), out, workers=2, seconds=seconds).splitlines()


def test_a_row_says_parameters_memory_tokens_and_the_updates_that_are_its_own(tiny, tmp_path):
    cells = cells_of(tiny)
    lines = text(cells, tmp_path)
    assert lines[0].split() == list(dry_run.COLUMNS)
    row = lines[2].split()
    memory = peak(cells["relora-seed0"])[1].total / 2**20
    assert row[:3] == ["relora-seed{0,1}", "relora", "demo"]
    assert row[5:] == [f"{memory:.1f}", "MiB", f"{60 * 4 * 32:,}", "27", "2", "min"]  # 33 of 60 are shared


def test_stages_are_listed_once_and_the_sums_say_what_sharing_saves(tiny, tmp_path):
    lines = text(cells_of(tiny), tmp_path)
    assert "4 stages, each trained once:" in lines
    assert "  full demo 0–20, seed 0,1: 2 go on from each" in lines  # full, and the next one
    assert "  lora demo 20–33, seed 0,1: 2 go on from each" in lines
    trained = 2 * (20 + 13 + 40 + 27 + 27)
    assert f"Sharing saves {360 - trained} of 360 updates ({100 * (360 - trained) / 360:.0f} %)." in lines
    assert lines[-1] == f"Time with 2 workers: about {trained * 2 / 2 / 60:.0f} min."


def test_what_has_ended_takes_no_more_time(tiny, tmp_path):
    cells = cells_of(tiny)
    for name in cells:
        RunFolder(tmp_path / name).make()
        RunFolder(tmp_path / name).write_status("finished", step=60)
    lines = text(cells, tmp_path)
    assert lines[1].split()[-3:] == ["ended", "0", "s"]
    assert lines[-1] == "Time with 2 workers: about 0 s."


def test_without_the_device_the_time_is_said_to_be_unknown(tiny, tmp_path):
    assert text(cells_of(tiny), tmp_path, lambda *_: None)[-1].endswith("unknown: its device is not here.")


def test_the_pace_is_measured_once_for_all_that_take_the_same_time(tiny):
    pace = Pace()
    found = [pace.seconds(config, 0, 60) for config in cells_of(tiny).values()]
    assert len(pace._known) == 2  # at full rank, at low rank
    assert all(0 < seconds < 60 for seconds in found)
    relora = changed(tiny)
    parts = pace.seconds(relora, 0, 20), pace.seconds(relora, 20, 60)
    assert sum(parts) == pytest.approx(pace.seconds(relora, 0, 60))
    assert Pace().seconds(changed(tiny, training={"device": "cuda"}), 0, 60) is None


def test_a_grid_that_cannot_go_on_is_refused(tiny, tmp_path):
    cells = cells_of(tiny)
    run_folder = RunFolder(tmp_path / "relora-seed0")
    run_folder.make()
    run_folder.write_config(changed(tiny, optimizer={"lr": 1.0}))
    run_folder.write_environment({})
    with pytest.raises(BadInput, match=r"optimizer\.lr changed from 1\.0 to 0\.003; use another folder"):
        text(cells, tmp_path)
    with pytest.raises(BadInput, match="is a run folder"):
        text(cells, tmp_path / "relora-seed0")


def test_the_command_writes_nothing(tmp_path, capsys):
    code, out, _ = run(capsys, "grid", "demo", "--dry-run", "--out", tmp_path / "runs")
    assert code == 0
    assert "Sharing saves" in out
    assert not (tmp_path / "runs").exists()
