"""Two ends of a run, or of two runs, as spectra: from Python and by `relora-lab spectrum`."""

import numpy as np
import pytest
import torch
from conftest import changed, tiny_tables
from safetensors.torch import load_file

from analysis import spectra
from analysis.checkpoints import open_checkpoint
from relora_lab import cli, train

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


def run(capsys, *arguments):
    """(exit code, stdout, stderr)."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


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
