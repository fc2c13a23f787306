"""Weights that a model uses in two places are refused where they are selected, and nothing else is taken for one."""

import pytest
import torch
from checkpoint_files import block, model, pair
from safetensors.torch import save_file, save_model
from torch import nn

from analysis.matching import match_models
from analysis.naming import Selection
from analysis.spectra import compare
from relora_lab.errors import BadInput

EMBEDDED = {"model.embed_tokens.weight": (20, 8), **block("model.layers.0.self_attn.q_proj")}
TIED = {
    "config": ({"tie_word_embeddings": True}, EMBEDDED, "*embed_tokens", "shared with the output head"),
    "no head": ({"architectures": ["GPT2LMHeadModel"]}, EMBEDDED, "*embed_tokens", "shared with the output head"),
    "not stored": (
        {"tie_word_embeddings": True}, EMBEDDED, "lm_head", "no matrix is selected.*the head is tied",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TIED)
def test_tied_weights_are_left_out_and_refused_where_they_are_selected(tmp_path, case):
    config, shapes, glob, message = TIED[case]
    found = pair(tmp_path, shapes, config=config)
    assert [m.role for m in found.matrices] == ["q"]
    assert found.left_out == 1
    with pytest.raises(BadInput, match=message):
        match_models(tmp_path / "start", tmp_path / "final", Selection(match=(glob,)))


def test_copies_of_tied_weights_are_found_by_what_is_in_them(tmp_path):
    shapes = EMBEDDED | {"lm_head.weight": (20, 8)}
    ends = []
    for seed, name in enumerate(("a", "b")):
        same = torch.randn(20, 8, generator=torch.Generator().manual_seed(seed))
        both = {"model.embed_tokens.weight": same, "lm_head.weight": same.clone()}
        ends.append(model(tmp_path / name, shapes, seed=seed, tensors=both))
    for glob in ("lm_head", "*embed_tokens"):
        with pytest.raises(BadInput, match="is shared with"):
            match_models(*ends, Selection(match=(glob,)))
    untied = [model(tmp_path / name, shapes, seed=seed) for seed, name in enumerate(("c", "d"))]
    assert len(match_models(*untied, Selection(match=("lm_head", "*embed_tokens"))).matrices) == 2


def test_a_matrix_that_two_layers_share_is_refused_however_it_was_saved(tmp_path):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8, bias=False) for _ in range(3)])
            self.layers[2].weight = self.layers[0].weight

    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        both = Shared()
        save_model(both, tmp_path / f"{name}.safetensors")
        save_file({n: t.clone() for n, t in both.state_dict().items()}, tmp_path / f"{name}-copied.safetensors")
    with pytest.raises(BadInput, match=r"layers\.0\.weight is shared with layers\.2\.weight"):
        match_models(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    with pytest.raises(BadInput, match=r"layers\.2 and layers\.0 are copies of one matrix"):
        compare(tmp_path / "a-copied.safetensors", tmp_path / "b-copied.safetensors")
    only = Selection(match=("layers.1",))
    assert len(match_models(tmp_path / "a.safetensors", tmp_path / "b.safetensors", only).matrices) == 1


@pytest.mark.parametrize(
    "name", ["tokens_embed", "word_embedding", "transformer.wte", "backbone.embeddings", "w", "encoder.table"]
)
def test_tied_embeddings_are_found_whatever_they_are_called(tmp_path, name):
    shapes = {f"{name}.weight": (20, 8), **block("layers.0.q_proj")}
    pair(tmp_path, shapes, config={"tie_word_embeddings": True, "vocab_size": 20})
    with pytest.raises(BadInput, match="is shared with the output head"):
        match_models(tmp_path / "start", tmp_path / "final", Selection(match=("*",)))


def test_constant_and_tiny_matrices_are_no_copies(tmp_path):
    ends = []
    for name, value in (("a", 0.0), ("b", 1.0)):
        tensors = {f"layers.{n}.gate.weight": torch.full((1, 2), 1 + value) for n in (0, 1)}
        tensors |= {f"layers.{n}.scale.weight": torch.full((1, 1), 1 + value) for n in (0, 1)}
        tensors |= {f"{side}.weight": torch.eye(8) * value for side in ("left", "right")}
        tensors |= {"layers.0.q_proj.weight": torch.eye(8) * value, "layers.1.q_proj.weight": torch.eye(8) * value}
        save_file(tensors, tmp_path / f"{name}.safetensors")
        ends.append(tmp_path / f"{name}.safetensors")
    assert len(compare(*ends, match="*").matrices) == 8
