"""The run folder: logs and checkpoints that fit together, cycles, manifest, where a run may be written."""

import json
import shutil
from unittest.mock import Mock

import pytest
import torch
from conftest import changed

from relora_lab import files, outcome, tensor_files
from relora_lab.errors import BadInput, Interrupted
from relora_lab.runs import RunFolder, snapshot


@pytest.fixture
def folder(tmp_path, tiny):
    made = RunFolder(tmp_path / "run")
    made.make()
    made.write_config(changed(tiny))
    return made


def save(folder, step):
    folder.save_checkpoint(step, {"model": {"w": torch.full((2,), float(step))}}, {"cycle": step})


@pytest.fixture
def tokenizer(tmp_path):
    made = tmp_path / "tokenizer"
    made.mkdir()
    (made / "tokenizer.json").write_text("{}")
    return made


def test_logs_are_cut_back_to_the_newest_checkpoint(folder):
    for step in range(1, 8):
        folder.logs.append("metrics", {"step": step, "loss": 1 / step})
        if step in (3, 5):
            save(folder, step)
    folder.logs.close()
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # a line cut by a crash
    tensors, facts = folder.load_checkpoint()
    assert facts["step"] == facts["cycle"] == 5
    assert tensors["model"]["w"].tolist() == [5.0, 5.0]
    assert [line["step"] for line in folder.logs.read("metrics")] == [1, 2, 3, 4, 5]
    assert len(list((folder.path / "checkpoints").iterdir())) == 1


def test_without_a_checkpoint_a_run_begins_again_with_empty_logs(folder):
    folder.logs.append("metrics", {"step": 1})
    assert folder.load_checkpoint() is None
    assert folder.logs.read("metrics") == []


def test_a_damaged_checkpoint_is_refused_by_name(folder):
    save(folder, 3)
    path = next(folder.path.glob("checkpoints/*/model.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"model\.safetensors: is damaged"):
        folder.load_checkpoint()


def test_a_second_state_of_a_step_is_the_newest(folder):
    save(folder, 3)
    folder.save_checkpoint(3, {"model": {"w": torch.zeros(2)}}, {"cycle": 3, "diverged": "yes"})
    assert folder.load_checkpoint()[1]["diverged"] == "yes"
    save(folder, 3)
    assert "diverged" not in folder.load_checkpoint()[1]
    save(folder, 4)
    assert folder.load_checkpoint()[1]["step"] == 4


def test_a_run_killed_as_it_adopted_a_stage_does_so_again(folder, tokenizer, tmp_path, tiny):
    stage = RunFolder(tmp_path / "stage")
    stage.make()
    stage.write_config(changed(tiny))
    stage.write_weights("warm_start", "{}", {"w": torch.ones(2)}, tokenizer)
    stage.logs.append("metrics", {"step": 3})
    save(stage, 3)
    stage.logs.close()
    for _ in range(2):
        folder.adopt(stage)
        for which in ("warm_start", "checkpoints/000000003"):
            of_both = [(run.path / which / "model.safetensors").stat().st_ino for run in (folder, stage)]
            assert of_both[0] == of_both[1]  # linked, not copied
        assert folder.manifest == stage.manifest
        assert folder.logs.read("metrics") == [{"step": 3}]
        shutil.rmtree(folder.checkpoints)


def test_what_a_killed_process_left_half_written_is_swept_away(folder):
    save(folder, 3)
    kept = set(folder.path.rglob("*"))
    (folder.path / ".metrics.jsonl-123").write_text("half")
    (folder.path / "checkpoints" / ".000000004-abc").mkdir()
    (folder.path / "checkpoints" / ".000000004-abc" / ".model.safetensors-123").write_text("half")
    folder.sweep()
    assert set(folder.path.rglob("*")) == kept


def test_a_run_killed_before_its_settings_were_written_can_begin_again(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.make()
    with folder.lock():
        pass
    folder.check(resume=False)


def test_numbers_that_are_not_finite_are_null_in_the_logs(folder):
    folder.logs.append("eval", {"step": 1, "loss": 800.0, "perplexity": float("inf"), "x": float("nan")})
    folder.logs.close()
    text = (folder.path / "eval.jsonl").read_text()
    assert json.loads(text) == {"step": 1, "loss": 800.0, "perplexity": None, "x": None}


def test_cycles_come_back_as_signed_pairs(folder):
    B, A = torch.randn(4, 2), torch.randn(2, 3)
    pairs = {"m.a": [(B, A, 2.0), (B + 1, A + 1, -2.0)], "m.b": [(B + 2, A + 2, 2.0)]}
    folder.write_cycle(1, pairs, {"cycle": 1, "end": 10})
    [(found, facts)] = folder.cycles()
    assert list(folder.cycles(since=10)) == []
    assert len(list(folder.cycles(since=9))) == 1
    assert facts == {"cycle": 1, "end": 10}
    assert found.keys() == pairs.keys()
    for name, expected in pairs.items():
        for (b, a, scale), (b_, a_, scale_) in zip(found[name], expected, strict=True):
            assert torch.equal(b, b_)
            assert torch.equal(a, a_)
            assert scale == scale_


def test_snapshots_are_listed_by_step_and_read_like_other_weights(folder, tokenizer):
    assert folder.snapshots == {}
    for step in (1500, 200, 30000):
        folder.write_weights(snapshot(step), "{}", {"w": torch.full((2,), float(step))}, tokenizer)
    assert list(folder.snapshots) == [200, 1500, 30000]
    assert folder.snapshots[1500] == folder.weights(snapshot(1500)) == folder.path / "snapshots" / "000001500"
    assert folder.weight(snapshot(1500), "w").tolist() == [1500.0, 1500.0]
    names = [path.name for path in folder.snapshots[1500].iterdir()]
    assert sorted(names) == ["config.json", "model.safetensors", "tokenizer.json"]
    with pytest.raises(BadInput, match="it has no snapshots/000000300/"):
        folder.weights(snapshot(300))


def test_a_snapshot_is_whole_or_not_there(folder, tokenizer, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(tensor_files, "write", Mock(side_effect=OSError("disk full")))
        folder.write_weights(snapshot(10), "{}", {"w": torch.ones(2)}, tokenizer)
    assert folder.snapshots == folder.manifest == {}
    (folder.path / "snapshots" / ".000000010-abc").mkdir()  # by a killed process
    assert folder.snapshots == {}
    folder.sweep()
    assert list((folder.path / "snapshots").iterdir()) == []


def test_a_snapshot_written_again_stays_or_is_replaced(folder, tokenizer):
    inodes = []
    for value in (1.0, 1.0, 2.0):
        folder.write_weights(snapshot(10), "{}", {"w": torch.full((2,), value)}, tokenizer)
        path = folder.snapshots[10] / "model.safetensors"
        inodes.append(path.stat().st_ino)
        assert folder.weight(snapshot(10), "w").tolist() == [value, value]
        assert folder.manifest["snapshots/000000010/model.safetensors"] == files.sha256(path)
    assert inodes[0] == inodes[1] != inodes[2]
    assert len(list((folder.path / "snapshots").iterdir())) == 1


def test_the_manifest_holds_the_hash_of_every_finished_file(folder, tokenizer):
    for which in ("final", snapshot(5)):
        folder.write_weights(which, "{}", {"w": torch.ones(2)}, tokenizer)
    folder.write_cycle(1, {}, {})
    folder.logs.append("metrics", {"step": 1})
    folder.write_environment({})
    folder.finish()
    manifest = json.loads((folder.path / "manifest.json").read_text())
    expected = {"config.toml", "environment.json", "metrics.jsonl"}
    weights = ("config.json", "model.safetensors", "tokenizer.json")
    expected |= {f"{which}/{name}" for which in ("final", "snapshots/000000005") for name in weights}
    expected |= {"cycles/0001.json", "cycles/0001.safetensors"}
    assert manifest.keys() == expected
    assert all(files.sha256(folder.path / name) == value for name, value in manifest.items())


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (Interrupted(15, "at step 7"), "stopped", "signal 15 at step 7"),
        (KeyboardInterrupt(), "stopped", "interrupted"),
        (OSError("disk\nfull"), "failed", "OSError: disk"),
    ],
)
def test_how_a_run_ended_early_is_noted_in_a_line(folder, error, state, reason):
    folder.write_status("running", step=7, steps=9)
    with pytest.raises(type(error)), outcome.noted(folder):
        raise error
    assert folder.state == state
    assert reason in folder.status["reason"]
    assert "\n" not in folder.status["reason"]
    assert folder.status["step"] == 7


@pytest.mark.parametrize("name", ["-rf", ".hidden", "a b", "x" * 81, "ü"])
def test_a_folder_of_a_bad_name_is_refused(tmp_path, name):
    with pytest.raises(BadInput, match="is no run name"):
        RunFolder(tmp_path / name).check(resume=False)


def test_a_folder_that_cannot_be_or_is_something_else_is_refused(tmp_path, folder):
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    for path, message in {
        "file/run": "Not a directory",
        "file": "Not a directory",
        "other": "is no run folder",
    }.items():
        with pytest.raises(BadInput, match=message):
            RunFolder(tmp_path / path).check(resume=True)
    with pytest.raises(BadInput, match="continue it with --resume"):
        folder.check(resume=False)
    folder.check(resume=True)
    RunFolder(tmp_path / "new" / "deep" / "run").check(resume=False)
    assert not (tmp_path / "new").exists()
