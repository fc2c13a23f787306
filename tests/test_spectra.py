"""Singular values of ΔW: exact, for any two checkpoints, and no answer where there is none."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from analysis import counts, look, naming, spectra
from analysis.spectra import compare, delta_spectra, singular_values
from relora_lab import cli
from relora_lab.errors import BadInput

shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))


def matrix(shape, seed, rank=None):
    """A random float64 matrix, of a rank if that is given."""
    random = np.random.default_rng(seed)
    if rank is None:
        return random.standard_normal(shape)
    return random.standard_normal((shape[0], rank)) @ random.standard_normal((rank, shape[1]))


def model(path, change=0.0, layers=2, dtype=torch.float32, **replaced):
    """A checkpoint with the names of a LLaMA, in one file."""
    random = torch.Generator().manual_seed(0)
    tensors = {"model.embed_tokens.weight": torch.randn(9, 8, generator=random), "lm_head.weight": torch.ones(9, 8)}
    for layer in range(layers):
        for role, shape in {"self_attn.q_proj": (8, 8), "mlp.up_proj": (12, 8), "mlp.down_proj": (8, 12)}.items():
            tensors[f"model.layers.{layer}.{role}.weight"] = torch.randn(
                shape, generator=random
            ) + change * torch.eye(*shape)
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = torch.ones(8)
    for name, tensor in replaced.items():
        key = f"model.layers.{name.replace('__', '.')}.weight"
        tensors = {n: t for n, t in tensors.items() if n != key} | ({key: tensor} if tensor is not None else {})
    path.mkdir()
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, path / "model.safetensors")
    return path


@given(shapes, st.integers(0, 10**6), st.sampled_from([1e-200, 1e-3, 1.0, 1e200]))
def test_they_are_those_of_a_float64_svd(shape, seed, scale):
    W = matrix(shape, seed) * scale
    expected = np.linalg.svd(W, compute_uv=False)
    found = singular_values(W)
    assert found.dtype == np.float64
    assert found.shape == expected.shape
    assert np.all(np.diff(found) <= 0)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=3e-8 * expected[0])
    np.testing.assert_allclose(singular_values(W, "svd"), expected, rtol=1e-12, atol=1e-15 * expected[0])


@given(shapes, st.integers(0, 10**6))
def test_squares_sum_up_to_the_frobenius_norm_and_a_transpose_changes_nothing(shape, seed):
    W = torch.from_numpy(matrix(shape, seed)).float()
    found = singular_values(W)
    assert np.sqrt((found**2).sum()) == pytest.approx(float(W.double().norm()), rel=1e-12)
    np.testing.assert_allclose(singular_values(W.T), found, rtol=1e-10, atol=1e-8 * found[0])


def test_float64_stays_float64_and_every_float_type_is_taken():
    W = matrix((20, 30), 0, rank=5)
    assert singular_values(W)[4] > 1e-3
    assert singular_values(W)[5] < 1e-7 * singular_values(W)[0]
    nearly_one = np.diag([1.0, 1.0 - 1e-12])
    assert singular_values(nearly_one)[1] < 1.0  # lost in float32
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.int8):
        whole = torch.tensor([[3, 0], [0, -4]], dtype=dtype)
        assert singular_values(whole).tolist() == [4.0, 3.0]


def test_edges():
    assert singular_values(np.zeros((3, 5))).tolist() == [0.0] * 3
    assert singular_values(np.empty((0, 5))).shape == (0,)
    for extreme in (5e-324, 1.7e308):
        assert singular_values(np.array([[extreme]])).tolist() == [extreme]
    with pytest.raises(ValueError, match="method must be"):
        singular_values(np.eye(2), "SVD")
    for bad in (np.ones(3), np.ones((2, 2, 2)), np.array([[np.nan, 1]]), np.array([[np.inf, 1]]), 1j * np.eye(2)):
        with pytest.raises(ValueError, match=r"singular values|non-finite"):
            singular_values(bad)


@pytest.mark.parametrize(("rank", "below"), [(384, 384), (128, 640)])
def test_synthetic_updates_at_768_have_as_many_small_values_as_their_rank_leaves(tmp_path, rank, below):
    W0 = torch.from_numpy(matrix((768, 768), 0)).float() * 0.02
    delta = torch.from_numpy(matrix((768, 768), 1, rank)).float() * 0.01
    for dtype in (torch.float32, torch.bfloat16):
        for name, W in {"start": W0, "final": W0.to(dtype).float() + delta}.items():
            save_file({"layers.0.q_proj.weight": W.to(dtype)}, tmp_path / f"{name}.safetensors")
        comparison = compare(tmp_path / "start.safetensors", tmp_path / "final.safetensors")
        assert counts.numerical_ranks(comparison)["rank"].tolist() == [rank]
        if dtype == torch.float32:
            [row] = counts.count_singular_values(comparison.spectra).to_dict("records")
            assert (row["below"], row["above"], row["total"]) == (below, rank, 768)


def test_a_comparison_is_a_tidy_table_of_the_linear_maps(tmp_path):
    start, final = model(tmp_path / "a"), model(tmp_path / "b", change=0.5)
    frame = delta_spectra(start, final)
    assert list(frame.columns) == ["matrix", "layer", "role", "rows", "cols", "index", "sigma"]
    assert list(frame["matrix"].unique()) == [
        f"model.layers.{n}.{role}" for n in (0, 1) for role in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
    ]
    assert len(frame) == 6 * 8
    np.testing.assert_allclose(frame["sigma"], 0.5, rtol=1e-5)
    assert set(frame.loc[frame["role"] == "up", "rows"]) == {12}
    pd.testing.assert_frame_equal(frame, delta_spectra(start, final, workers=1))
    assert compare(start, final).left_out == 4
    only = delta_spectra(start, final, match=["*.q_proj", "lm_*"])["matrix"].unique()
    assert set(only) == {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "lm_head"}


def test_roles_that_would_mix_matrices_are_told_apart(tmp_path):
    for name, shift in {"a": 0.0, "b": 1.0}.items():
        kinds = {"attn.c_proj": (8, 8), "mlp.c_proj": (32, 8), "attn.c_attn": (24, 8)}
        tensors = {f"h.{n}.{kind}.weight": torch.ones(shape) * shift for n in (0, 1) for kind, shape in kinds.items()}
        save_file({**tensors, "h.0.empty.weight": torch.ones(0, 8)}, tmp_path / f"{name}.safetensors")
    frame = delta_spectra(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert set(frame["role"]) == {"attn.c_proj", "mlp.c_proj", "c_attn"}


def test_shards_are_one_checkpoint_and_a_tensor_in_two_of_them_is_refused(tmp_path):
    start, final = model(tmp_path / "a"), model(tmp_path / "b", change=0.5)
    whole = load_file(final / "model.safetensors")
    (final / "model.safetensors").unlink()
    for number, name in enumerate(sorted(whole)):
        save_file({name: whole[name]}, final / f"model-{number:05d}.safetensors")
    assert len(delta_spectra(start, final)) == 6 * 8
    save_file({"lm_head.weight": whole["lm_head.weight"]}, final / "more.safetensors")
    with pytest.raises(BadInput, match=r"more\.safetensors: tensor 'lm_head\.weight' is in another shard"):
        delta_spectra(start, final)


Q, UP = "0__self_attn__q_proj", "1__mlp__up_proj"
REFUSED = {
    "another size": (
        {Q: torch.ones(4, 8), UP: torch.ones(2, 2)},
        r"q_proj\.weight is 8×8, but 4×8 in .*\(and 1 more\)",
    ),
    "transposed": ({UP: torch.ones(8, 12)}, r"up_proj\.weight is 12×8, but 8×12"),
    "reshaped": ({UP: torch.ones(96)}, r"up_proj\.weight is 12×8, but 96 in"),
    "missing": ({UP: None}, r"b: missing model\.layers\.1\.mlp\.up_proj\.weight, which .*a has$"),
    "extra": ({"2__mlp__up_proj": torch.ones(2, 2)}, r"a: missing model\.layers\.2\.mlp\.up_proj\.weight, which"),
    "same": ({}, r"ΔW is exactly zero for all 6 matrices: same files\?"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compared_is_refused_by_name(tmp_path, case):
    replaced, message = REFUSED[case]
    with pytest.raises(BadInput, match=message):
        delta_spectra(model(tmp_path / "a"), model(tmp_path / "b", **replaced))


def test_nothing_selected_integers_and_files_that_are_none_are_refused(tmp_path):
    start = model(tmp_path / "a")
    with pytest.raises(BadInput, match="no matrix is selected by --match nothing"):
        delta_spectra(start, start, match="nothing")
    with pytest.raises(BadInput, match="is stored as I8, which cannot be subtracted"):
        delta_spectra(start, model(tmp_path / "ints", dtype=torch.int8))
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "x.pt").write_bytes(b"")
    (tmp_path / "cut.safetensors").write_bytes(b"123")
    for name, message in {
        "nowhere": "no such file or folder",
        "empty": "holds no .safetensors file",
        "pickled": "pickle files are never loaded",
        "x.pt": "pickle files are never loaded",
        "cut.safetensors": r"not a safetensors file \(3 bytes\)",
    }.items():
        with pytest.raises(BadInput, match=message):
            delta_spectra(start, tmp_path / name)


def test_a_matrix_with_nan_is_marked_and_the_rest_is_done(tmp_path):
    broken = torch.full((8, 8), 0.25)
    broken[0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    start = model(tmp_path / "a")
    found = look.at(start, model(tmp_path / "b", change=0.5, **{Q: broken}))
    assert found.nonfinite == {"model.layers.0.self_attn.q_proj": 3}
    by_matrix = counts.count_singular_values(found.comparison.spectra).set_index("matrix")
    assert by_matrix.loc["model.layers.0.self_attn.q_proj", ["below", "above"]].isna().all()
    assert by_matrix["above"].sum() == 5 * 8
    told = json.loads(look.as_json([found]))["matrices"]
    assert [m["rank"] for m in told] == [None, 8, 8, 8, 8, 8]
    assert told[0]["sigma"] == [None] * 8


def test_the_files_and_the_text_hold_the_same_numbers(tmp_path):
    found = look.at(model(tmp_path / "a"), model(tmp_path / "b", change=0.5), [0.1, 0.7])
    look.write([found], tmp_path / "out")
    tables = {f"{name}.parquet" for name in ("spectra", "counts", "matrices")} | {"counts.csv", "matrices.csv"}
    figures = {
        f"{name}.{kind}" for name in ("spectra", "spectra_by_layer", "effective_rank") for kind in ("png", "pdf")
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == tables | figures
    for written in (
        pd.read_csv(tmp_path / "out" / "counts.csv"),
        pd.read_parquet(tmp_path / "out" / "counts.parquet"),
    ):
        assert written.groupby("threshold")["below"].sum().to_dict() == {0.1: 0, 0.7: 48}
    spectrum = pd.read_parquet(tmp_path / "out" / "spectra.parquet")
    np.testing.assert_array_equal(spectrum["sigma"], found.comparison.spectra["sigma"])
    [line] = [line for line in found.as_text().splitlines() if line.split()[:1] == ["all"]]
    assert line.split() == ["all", "6", "0.500", "8", "8.000", "0", "48", "48", "0"]


def test_several_models_are_laid_over_one_another(tmp_path, capsys):
    random = {f"{n}__{role}": torch.randn(8, 8) for n in (0, 1) for role in ("self_attn__q_proj",)}
    for name, change, replaced in (("base", 0.0, {}), ("x", 0.5, {}), ("y", 0.2, random)):
        model(tmp_path / name, change=change, **replaced)
    command = ["spectrum", *(str(tmp_path / name) for name in ("base", "x", "y")), "--vectors", "--tail"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--out", str(tmp_path / "out")])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert told.count("ΔW of 6 matrices") == 2
    assert "overlap of the 2 largest directions" in told
    assert "share of ‖ΔW‖² in W's 2 leading directions" in told
    frame = pd.read_parquet(tmp_path / "out" / "spectra.parquet")
    assert list(frame["label"].unique()) == ["x", "y"]
    matrices = pd.read_parquet(tmp_path / "out" / "matrices.parquet")
    assert {"intruders", "out_energy", "alpha", "noise", "effective_rank", "energy_rank_90"} <= set(matrices.columns)
    assert len(matrices) == 12
    common = pd.read_csv(tmp_path / "out" / "overlaps.csv")
    assert common["overlap"].between(0, 1).all()
    with pytest.raises(SystemExit):
        cli.main([*command, "--json", "--role", "q", "--layer", "0-1"])
    looks = json.loads(capsys.readouterr().out)
    assert [look["final"] for look in looks["finals"]] == command[2:4]
    assert len(looks["overlaps"]) == 2 * 2
    assert [m["matrix"] for m in looks["finals"][0]["matrices"]] == [
        f"model.layers.{n}.self_attn.q_proj" for n in (0, 1)
    ]


def test_all_models_are_looked_at_before_any_work_is_done(tmp_path, monkeypatch):
    start, final = model(tmp_path / "a"), model(tmp_path / "b", change=0.5)
    for finals, message in {
        (final, tmp_path / "nowhere"): "no such file or folder",
        (final, tmp_path / "a" / ".." / "b"): "is given twice",
    }.items():
        with monkeypatch.context() as patch, pytest.raises(BadInput, match=message):
            patch.setattr(spectra, "compare_matched", lambda *_, **__: pytest.fail("worked"))
            look.several(start, finals)


def test_which_of_several_models_has_nan_is_said(tmp_path, capsys):
    broken = torch.full((8, 8), float("nan"))
    model(tmp_path / "base")
    for name, replaced in (("x", {Q: broken}), ("y", {}), ("z", {Q: broken})):
        model(tmp_path / name, change=0.5, **replaced)
    with pytest.raises(SystemExit) as ended:
        cli.main(["spectrum", *(str(tmp_path / name) for name in ("base", "x", "y", "z"))])
    assert ended.value.code == 3
    told = [line for line in capsys.readouterr().err.splitlines() if "non-finite" in line]
    assert [Path(line.split(": ")[1]).name for line in told] == ["x", "z"]


@pytest.mark.parametrize("scale", [1e-26, 1e-15, 1e19, 1e25])
def test_ranks_are_those_of_any_scale(tmp_path, scale):
    for name, seed in (("a", 0), ("b", 1)):
        W = torch.from_numpy(matrix((32, 32), seed) * scale).float()
        save_file({"layers.0.q_proj.weight": W}, tmp_path / f"{name}.safetensors")
    comparison = compare(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert counts.numerical_ranks(comparison)["rank"].tolist() == [32]
    assert comparison.matrices["rms"].tolist() == pytest.approx([scale], rel=0.1)


def test_a_device_without_float64_is_refused(tmp_path):
    start, final = model(tmp_path / "a"), model(tmp_path / "b", change=0.5)
    for device in ("meta", "cuda:99", "nonsense"):
        with pytest.raises(BadInput, match=f"--device {device}: cannot compute in float64 here"):
            compare(start, final, device=device)


def test_layers_are_numbers_and_ranges():
    assert naming.layers_of(["3", "0-2"]) == [3, 0, 1, 2]
    for bad in ("x", "1-", "-1", "1,2", "3-0", "²", "0-99999999"):
        with pytest.raises(BadInput, match="--layer: expected a number or a range like 0-3"):
            naming.layers_of([bad])


def test_it_needs_no_training_stack():
    check = "import sys, analysis.look; print({'transformers', 'datasets', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_threads_are_as_they_were(tmp_path):
    before = torch.get_num_threads()
    spectra.compare(model(tmp_path / "a"), model(tmp_path / "b", change=1.0))
    assert torch.get_num_threads() == before
