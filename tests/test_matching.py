"""Any two models: which matrices they share, as (out, in), by the names of any family; and when the answer is no."""

import pytest
import torch
from checkpoint_files import block, model, pair

from analysis import look
from analysis.checkpoints import open_checkpoint
from analysis.matching import match_models
from analysis.naming import Selection
from analysis.spectra import compare, delta_spectra
from relora_lab.errors import BadInput

GPT2 = {
    "h.0.attn.c_attn.weight": (8, 24),
    "h.0.attn.c_proj.weight": (8, 8),
    "h.0.mlp.c_fc.weight": (8, 32),
    "h.0.mlp.c_proj.weight": (32, 8),
    "h.0.attn.bias": (1, 1, 16, 16),
    "h.0.ln_1.weight": (8,),
    "wte.weight": (20, 8),
    "wpe.weight": (16, 8),
}


def test_gpt2_is_stored_transposed_and_read_as_out_in(tmp_path):
    found = pair(tmp_path, GPT2)
    shapes = {matrix.role: (matrix.rows, matrix.cols) for matrix in found.matrices}
    assert shapes == {"c_attn": (24, 8), "attn.c_proj": (8, 8), "c_fc": (32, 8), "mlp.c_proj": (8, 32)}
    assert found.left_out == 4
    for matrix in found.matrices:
        start, final = matrix.ends()
        stored = open_checkpoint(tmp_path / "final").tensors[f"{matrix.name}.weight"].read()
        assert torch.equal(final, stored.T)
        assert start.shape == final.shape == (matrix.rows, matrix.cols)


def test_the_same_names_in_a_linear_layer_are_not_turned(tmp_path):
    linear = {
        name: shape[::-1] if len(shape) == 2 and name.startswith("h") else shape for name, shape in GPT2.items()
    }
    shapes = {matrix.role: (matrix.rows, matrix.cols) for matrix in pair(tmp_path, linear).matrices}
    assert shapes["c_attn"] == (24, 8)
    assert shapes["mlp.c_proj"] == (8, 32)


@pytest.mark.parametrize(("kind", "rows"), [("mixtral", 6), ("gpt_oss", 4)])
def test_experts_in_one_tensor_are_a_matrix_each(tmp_path, kind, rows):
    shapes = {"model.layers.0.mlp.experts.down_proj": (3, 6, 4), "model.layers.0.mlp.experts.down_proj_bias": (3, 4)}
    found = pair(tmp_path, shapes, config={"model_type": kind})
    assert [(m.name, m.role) for m in found.matrices] == [
        (f"model.layers.0.mlp.experts.{part}.down_proj", "down") for part in range(3)
    ]
    assert {(m.rows, m.cols) for m in found.matrices} == {(rows, 10 - rows)}
    assert found.left_out == 1
    whole = open_checkpoint(tmp_path / "final").tensors["model.layers.0.mlp.experts.down_proj"].read()
    for part, matrix in enumerate(found.matrices):
        _, final = matrix.ends()
        assert torch.equal(final, whole[part] if rows == 6 else whole[part].T)
    assert len(delta_spectra(tmp_path / "start", tmp_path / "final")) == 3 * 4


ROLES = {
    "t5": (
        [
            *(f"{stack}.block.0.layer.0.SelfAttention.q" for stack in ("encoder", "decoder")),
            "decoder.block.0.layer.1.EncDecAttention.q",
            "decoder.block.0.layer.2.DenseReluDense.wi",
        ],
        {"encoder.SelfAttention.q", "decoder.SelfAttention.q", "decoder.EncDecAttention.q", "wi"},
    ),
    "mixture of experts": (
        [
            "model.layers.0.mlp.gate",
            *(f"model.layers.0.mlp.experts.{n}.gate_proj" for n in (0, 1)),
            "model.layers.0.mlp.shared_expert.gate_proj",
            "model.layers.0.self_attn.q_proj",
        ],
        {"mlp.gate", "experts.gate_proj", "shared_expert.gate_proj", "q"},
    ),
    "bert": (
        [
            "encoder.layer.0.attention.output.dense",
            "encoder.layer.0.output.dense",
            "encoder.layer.0.attention.self.key",
        ],
        {"attention.output.dense", "layer.output.dense", "key"},
    ),
}


@pytest.mark.parametrize("family", ROLES)
def test_kinds_of_matrices_never_share_a_role(tmp_path, family):
    modules, roles = ROLES[family]
    found = pair(tmp_path, block(*modules))
    assert {matrix.role for matrix in found.matrices} == roles
    assert len(found.matrices) == len(modules)
    assert {matrix.layer for matrix in found.matrices} == {0}


def test_role_layer_and_glob_choose_and_what_is_left_out_is_counted(tmp_path):
    shapes = block(*(f"model.layers.{n}.self_attn.{r}_proj" for n in range(12) for r in "qkv")) | {
        "lm_head.weight": (9, 8)
    }
    found = pair(tmp_path, shapes, Selection(roles=("q", "k"), layers=(2, 10)))
    assert [(m.layer, m.role) for m in found.matrices] == [(2, "q"), (2, "k"), (10, "q"), (10, "k")]
    assert found.left_out == 33
    ends = tmp_path / "start", tmp_path / "final"
    assert len(match_models(*ends, Selection(match=("*.v_proj",), layers=(1,))).matrices) == 1
    assert len(match_models(*ends, Selection(match=("lm_head",))).matrices) == 1
    assert [m.layer for m in match_models(*ends, Selection(roles=("q",))).matrices] == list(range(12))
    with pytest.raises(BadInput, match="no matrix is selected by --role up --layer 3; the roles are q, k, v"):
        match_models(*ends, Selection(roles=("up",), layers=(3,)))


def test_a_model_without_head_has_the_names_of_one_with_head_but_for_their_beginning(tmp_path):
    inner = block("layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj")
    bare = model(tmp_path / "bare", inner)
    whole = model(
        tmp_path / "whole",
        {f"model.{name}": shape for name, shape in inner.items()} | {"lm_head.weight": (9, 8)},
        seed=1,
    )
    for ends in ((bare, whole), (whole, bare)):
        assert [m.name for m in match_models(*ends).matrices] == [
            f"model.layers.{n}.self_attn.q_proj" for n in (0, 1)
        ]
    deeper = model(tmp_path / "deeper", inner | block("layers.2.self_attn.q_proj"), seed=2)
    with pytest.raises(
        BadInput, match=r"whole: missing model\.layers\.2\.self_attn\.q_proj\.weight, which .*deeper has$"
    ):
        match_models(whole, deeper)


def test_a_renamed_matrix_is_refused_with_both_names(tmp_path):
    start = model(tmp_path / "a", block("layers.0.q_proj", "layers.0.k_proj"))
    final = model(tmp_path / "b", block("layers.0.q_proj", "layers.0.key"), seed=1)
    with pytest.raises(
        BadInput, match=r"a: missing layers\.0\.key\.weight; it has layers\.0\.k_proj\.weight, which .*b has not"
    ):
        match_models(start, final)


def test_a_model_of_another_size_is_refused_by_its_shapes_even_if_it_has_more_blocks(tmp_path):
    start = model(tmp_path / "a", block("layers.0.q_proj"))
    final = model(tmp_path / "b", block("layers.0.q_proj", "layers.1.q_proj", shape=(16, 16)))
    with pytest.raises(BadInput, match=r"a: layers\.0\.q_proj\.weight is 8×8, but 16×16 in .*b"):
        match_models(start, final)


def test_a_transposed_square_matrix_is_refused(tmp_path):
    shapes = block("layers.0.q_proj", "layers.0.k_proj")
    start = model(tmp_path / "a", shapes)
    turned = {name: t.read().T.contiguous() + 0.01 for name, t in open_checkpoint(start).tensors.items()}
    final = model(tmp_path / "b", shapes, tensors=turned)
    with pytest.raises(
        BadInput, match=r"b/model\.safetensors: layers\.0\.q_proj is nearly the transpose of what .*a/"
    ):
        compare(start, final)
    compare(start, model(tmp_path / "c", shapes, seed=3))  # another model altogether is no transpose


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.int32])
def test_codes_that_cannot_be_subtracted_are_refused(tmp_path, dtype):
    shapes = block("layers.0.q_proj")
    start = model(tmp_path / "a", shapes)
    final = model(tmp_path / "b", shapes, tensors={"layers.0.q_proj.weight": torch.zeros(8, 8).to(dtype)})
    with pytest.raises(BadInput, match=r"b: layers\.0\.q_proj\.weight is stored as \w+, which cannot be subtracted"):
        match_models(start, final)


def test_one_side_tells_how_the_other_is_stored(tmp_path):
    start, final = (model(tmp_path / name, GPT2, seed=seed) for seed, name in enumerate("ab"))
    part = {name: shape for name, shape in GPT2.items() if "attn.c_proj" in name}
    bare = model(tmp_path / "part", part, seed=3)
    assert all(
        m.start.transposed and m.final.transposed
        for m in match_models(start, bare, Selection(match=("*attn.c_proj",))).matrices
    )
    shapes = {"model.layers.0.mlp.experts.down_proj": (3, 4, 6)}
    folder, other = (
        model(tmp_path / f"e{n}", shapes, seed=n, config={"model_type": "gpt_oss"} if n else None) for n in (1, 0)
    )
    for ends in ((folder, other), (other, folder)):
        assert [(m.rows, m.cols) for m in match_models(*ends).matrices] == [(6, 4)] * 3
    assert final.exists()


def test_blocks_are_numbered_in_several_ways(tmp_path):
    names = {
        "encoder.layers.encoder_layer_3.mlp.0": (3, "mlp.0"),
        "encoder.layers.encoder_layer_3.mlp.3": (3, "mlp.3"),
        "encoder.layers.encoder_layer_3.self_attention.out_proj": (3, "out_proj"),
        "h.1.ffn.0": (1, "ffn.0"),
        "h.1.ffn.2": (1, "ffn.2"),
        "layers.7": (7, "layers"),
        "layers.0.decomposition": (0, "decomposition"),
        "embedder.layers.2.dense": (2, "dense"),
        "layers.0.x²": (0, "x²"),
        f"layers.{'9' * 400}.far": (-1, "far"),
    }
    left = [
        "layers.0.relative_attention_bias",
        "layers.0.pos_embed",
        "layers.0.embed_positions",
        "layers.0.rotary_emb",
    ]
    found = pair(tmp_path, block(*names, *left))
    assert {m.name: (m.layer, m.role) for m in found.matrices} == {
        n: place for n, place in names.items() if place[0] >= 0
    }


def test_weights_that_are_no_known_matrices_are_named(tmp_path):
    shapes = block("layers.0.q_proj") | {
        "layers.0.conv.weight": (4, 1, 3),
        "layers.0.moe.input_linear.weight": (2, 6, 4),
    }
    found = pair(tmp_path, shapes)
    assert found.passed_over == ["layers.0.conv.weight"]
    assert {m.name for m in found.matrices} == {f"layers.0.moe.{n}.input_linear" for n in (0, 1)} | {
        "layers.0.q_proj"
    }
    told = look.at(tmp_path / "start", tmp_path / "final").as_text()
    assert "of them 1 in blocks are no matrices that are known: layers.0.conv.weight" in told
