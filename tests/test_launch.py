"""Runs in worker processes: a failing cell does not stop the others, and is named."""

from conftest import changed

from relora_lab import grid, sizes
from relora_lab.launch import local
from relora_lab.runs import RunFolder


def test_cells_are_trained_a_failing_one_is_named_and_done_ones_are_left_alone(tmp_path, tiny):
    cells = {f"ok{seed}": changed(tiny, training={"seed": seed}) for seed in (0, 1)}
    failing = {"bad": changed(tiny, data={"corpus": str(tmp_path / "nowhere.txt")})}
    failures = local.launch(cells | failing, tmp_path / "runs", workers=2)
    assert failures.keys() == {"bad"}
    assert "nowhere.txt: cannot be read" in failures["bad"]
    assert [RunFolder(tmp_path / "runs" / name).state for name in cells] == ["finished"] * 2
    told = grid.summary(RunFolder(tmp_path / "runs" / name) for name in [*cells, "bad"]).splitlines()
    final = RunFolder(tmp_path / "runs" / "ok0").final_evaluation
    _, trained = sizes.count_parameters(cells["ok0"].model.shape, rank=2, vocab_size=256)
    assert told[1].split()[:3] == ["ok0", f"{trained:,}", f"{final['perplexity']:.3f}"]
    assert told[3].split() == ["bad", "–", "–", "–", "–", "waiting"]

    before = (tmp_path / "runs" / "ok0" / "status.json").stat().st_mtime_ns
    assert local.launch(cells, tmp_path / "runs", workers=1) == {}
    assert (tmp_path / "runs" / "ok0" / "status.json").stat().st_mtime_ns == before
