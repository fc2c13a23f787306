"""Two ends of a run, or of two runs, as spectra: from Python and by `relora-lab spectrum`."""

import shutil

import numpy as np
import pytest
import torch
from conftest import changed, run, tiny_tables
from safetensors.torch import load_file, save_file

from analysis import spectra
from analysis.checkpoints import open_checkpoint
from relora_lab import train
from relora_lab.errors import BadInput

FULL = {
    "method": {"name": "full"},
    "training": {"warm_start": 0, "reference_step": 20},
    "optimizer": {"low_rank_lr": 3e-3},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run at full rank and one of ReLoRA, both measured from step 20."""
    out = tmp_path_factory.mktemp("runs")
    for name, parts in {"full-seed0": FULL, "relora-seed0": {}}.items():
        train.run(changed(tiny_tables(), **parts), out / name)
    return out


def test_spectra_are_those_of_the_merged_weights(folder):
    path = folder / "relora-seed0"
    ends = [load_file(path / which / "model.safetensors") for which in ("warm_start", "final")]
    for matrix, group in spectra.delta_spectra(path, path).groupby("matrix"):
        delta = (ends[1][f"{matrix}.weight"] - ends[0][f"{matrix}.weight"]).double()
        np.testing.assert_allclose(group["sigma"], torch.linalg.svdvals(delta), atol=1e-7)
    assert set(open_checkpoint(path).tensors) == set(ends[1])


def test_spectrum_takes_thresholds_and_two_ends(folder, tmp_path, capsys):
    first, second = folder / "relora-seed0", folder / "full-seed0" / "final"
    code, out, _ = run(capsys, "spectrum", first, second, "--threshold", "0.01", "--threshold", "0.2")
    assert code == 0
    assert "< 0.01 ≥ 0.01 < 0.2 ≥ 0.2" in " ".join(out.split())
    code, out, _ = run(capsys, "spectrum", first, "--out", tmp_path / "out")
    assert "rank ceiling of this run: 6" in out
    assert (tmp_path / "out" / "spectra.png").exists()
    code, _, err = run(capsys, "spectrum", second, second)
    assert (code, "ΔW is exactly zero for all 14 matrices: same files?" in err) == (2, True)
    code, out, _ = run(capsys, "spectrum", first, "--match", "*embed*")
    assert "rank ceiling of this run: 16" in out  # it has no factors
    for refused in (["--workers", "0"], ["--out", first], ["--out", first / "config.toml"], ["--threshold", "-1"]):
        code, out, err = run(capsys, "spectrum", first, *refused)
        assert (code, out, len(err.splitlines())) == (2, "", 1), refused
    code, _, err = run(capsys, "spectrum", second)
    assert (code, "is no run folder" in err) == (2, True)


def test_a_runs_factors_stand_for_its_weights_while_both_are_what_it_wrote(folder, tmp_path):
    path = shutil.copytree(folder / "relora-seed0", tmp_path / "run")
    known, dense = spectra.compare(path, path), spectra.compare(path, path, method="gram")
    assert (set(known.matrices["source"]), set(dense.matrices["source"])) == ({"factors"}, {"weights"})
    np.testing.assert_allclose(
        known.spectra["sigma"], dense.spectra["sigma"], atol=1e-6 * dense.spectra["sigma"].max()
    )
    assert (known.spectra.query("index >= 6")["sigma"] == 0).all()  # three cycles of rank 2
    full = folder / "full-seed0"
    assert set(spectra.compare(full, full).matrices["source"]) == {"weights"}
    between = spectra.compare(path, full)
    assert set(between.matrices["source"]) == {"weights"}
    for changed_file in ("cycles/0002.json", "cycles/0002.safetensors", "final/model.safetensors"):
        file = path / changed_file
        written = file.read_bytes()
        if file.suffix == ".json":
            file.write_bytes(written + b"\n")
        else:
            save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file)
        with pytest.raises(BadInput, match=f"{changed_file}: is damaged or was changed"):
            spectra.compare(path, path)
        file.write_bytes(written)
    assert set(spectra.compare(path, path).matrices["source"]) == {"factors"}


def test_spectra_over_training_end_with_those_of_the_run(tmp_path):
    path = train.run(changed(tiny_tables(), training={"snapshot_every": 15}), tmp_path / "run")
    found = spectra.over_training(path)
    assert list(found["step"].unique()) == [30, 45, 60]
    ranks = found[found["sigma"] > 1e-5].groupby(["step", "matrix"]).size().groupby("step").unique()
    assert {step: list(rank) for step, rank in ranks.items()} == {30: [2], 45: [4], 60: [6]}
    last = found[found["step"] == 60]["sigma"].to_numpy()
    np.testing.assert_allclose(last, spectra.of_run(path).spectra["sigma"], atol=1e-6)
