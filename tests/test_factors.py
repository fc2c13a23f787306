"""ΔW from factors: the spectrum is that of the sum, and PEFT's adapters mean what PEFT merges."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from analysis import look
from analysis.matching import match_models
from analysis.naming import Selection
from analysis.spectra import compare, factored_singular_values, singular_values
from relora_lab.errors import BadInput

sides = st.integers(1, 60)


def products(out, cols, ranks, seed, scale=1.0, dtype=np.float64):
    """Random factors (B, A, ±scale) of these ranks."""
    random = np.random.default_rng(seed)
    drawn = [
        (random.standard_normal((out, r)), random.standard_normal((r, cols)), random.choice([-1, 1])) for r in ranks
    ]
    return [(B.astype(dtype), A.astype(dtype), float(sign) * scale) for B, A, sign in drawn]


def summed(factors):
    return sum(scale * (B.astype(np.float64) @ A.astype(np.float64)) for B, A, scale in factors)


@given(sides, sides, st.lists(st.integers(0, 20), min_size=1, max_size=4), st.integers(0, 10**6))
def test_they_are_the_singular_values_of_the_sum(out, cols, ranks, seed):
    factors = products(out, cols, ranks, seed)
    found, expected = factored_singular_values(factors), np.linalg.svd(summed(factors), compute_uv=False)
    assert found.shape == (min(out, cols),)
    assert found.dtype == np.float64
    assert np.all(np.diff(found) <= 0)
    largest = max(expected[0], 1e-300)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-7 * largest)
    k = sum(ranks)
    if k <= 0.6 * min(out, cols):
        assert not found[k:].any()  # zero, not nearly
    told = (expected >= 1e-6 * largest) & (expected > 0)  # counts of these are as exact as those of the dense way
    bound = np.maximum(1e-12, 1e-14 * (largest / expected[told]) ** 2) * expected[told]
    assert (np.abs(found[told] - expected[told]) <= bound).all()


@given(st.integers(0, 10**6), st.sampled_from([1e-6, 1e-3, 1.0]))
def test_products_that_cancel_keep_their_digits(seed, moved):
    """RePiSSA's cycles: s(BA − B₀A₀), a difference much smaller than either."""
    [(B, A, _)] = products(40, 60, [6], seed)
    [(dB, dA, _)] = products(40, 60, [6], seed + 1)
    factors = [(B + moved * dB, A + moved * dA, 0.5), (B, A, -0.5)]
    exact = [(np.concatenate([dB, B], 1), np.concatenate([A, dA]), 0.5 * moved), (dB, dA, 0.5 * moved**2)]
    expected = np.linalg.svd(summed(exact), compute_uv=False)
    np.testing.assert_allclose(
        factored_singular_values(factors)[:12], expected[:12], rtol=1e-12 / moved**2, atol=1e-15
    )
    np.testing.assert_allclose(factored_singular_values(factors)[0], expected[0], rtol=1e-12 / moved)


@given(st.integers(0, 10**6), st.sampled_from([1e-200, 1e-30, 1e30, 1e150]), st.sampled_from([1e-120, 1.0, 1e120]))
def test_their_scale_is_free_and_lies_where_it_likes(seed, scale, moved):
    factors = products(30, 50, [3, 2], seed)
    [*wanted] = factored_singular_values(factors)[:5]
    elsewhere = [(B * moved, A / moved, s * scale) for B, A, s in factors]
    np.testing.assert_allclose(factored_singular_values(elsewhere)[:5], np.array(wanted) * scale, rtol=1e-9)
    uneven = [
        (B * [1e-40, 1.0, 1e40][: B.shape[1]], A / np.array([1e-40, 1.0, 1e40])[: len(A), None], s)
        for B, A, s in factors
    ]
    np.testing.assert_allclose(factored_singular_values(uneven)[:5], wanted, rtol=1e-9)


def test_every_kind_of_factor_is_taken_and_dependent_ones_too():
    factors = products(30, 20, [4, 4], 0, dtype=np.float32)
    expected = factored_singular_values(factors)
    as_tensors = [(torch.from_numpy(B), torch.from_numpy(A), s) for B, A, s in factors]
    np.testing.assert_array_equal(factored_singular_values(as_tensors), expected)
    halves = [(B.bfloat16(), A.bfloat16(), s) for B, A, s in as_tensors]
    np.testing.assert_allclose(factored_singular_values(halves)[:8], expected[:8], rtol=0.05)
    twice = [*factors, *factors]  # of rank 8, with 16 columns
    np.testing.assert_allclose(factored_singular_values(twice)[:8], 2 * expected[:8], rtol=1e-10)
    assert factored_singular_values([(np.zeros((5, 2)), np.ones((2, 7)), 1.0)]).tolist() == [0.0] * 5
    assert factored_singular_values([(np.ones((1, 1)), np.ones((1, 1)), -2.0)]).tolist() == [2.0]


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([], "no products"),
        ([(np.ones((4, 2)), np.ones((3, 5)), 1.0)], "no factors of a 4×5 matrix"),
        ([(np.ones((4, 2)), np.ones((2, 5)), 1.0), (np.ones((3, 2)), np.ones((2, 5)), 1.0)], "no factors of a 4×5"),
        ([(np.ones(4), np.ones((1, 5)), 1.0)], "a factor is a matrix"),
        ([(np.full((4, 1), np.nan), np.ones((1, 5)), 1.0)], "non-finite"),
    ],
)
def test_what_is_no_sum_of_products_is_refused(factors, message):
    with pytest.raises(ValueError, match=message):
        factored_singular_values(factors)


# ---- PEFT


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny LLaMA."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=30, **sizes))
    path = tmp_path_factory.mktemp("base")
    model.save_pretrained(path)
    return path


def adapt(base, folder, *, seed=1, **settings):
    """A PEFT adapter of random factors on the model in `base`, and the merged model beside it."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn(parameter.shape))
    model.save_pretrained(folder / "adapter")
    model.merge_and_unload().save_pretrained(folder / "merged")
    return folder / "adapter", folder / "merged"


ADAPTERS = {
    "plain": {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "up_proj"]},
    "rank-stabilised": {"r": 4, "lora_alpha": 7, "use_rslora": True, "target_modules": ["k_proj", "down_proj"]},
    "patterns": {
        "r": 2,
        "lora_alpha": 5,
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 5},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 3, "0.self_attn.v_proj": 11},
    },
    "a matrix trained whole": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["gate_proj"]},
    "of a high rank": {"r": 14, "lora_alpha": 3, "target_modules": ["o_proj"]},
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_is_what_peft_merges(base, tmp_path, case):
    adapter, merged = adapt(base, tmp_path, **ADAPTERS[case])
    found = compare(base, adapter)
    dense = compare(base, merged, match=[*found.matrices["matrix"]], method="svd")
    assert found.matrices["matrix"].tolist() == dense.matrices["matrix"].tolist()
    largest = dense.spectra["sigma"].max()
    np.testing.assert_allclose(found.spectra["sigma"], dense.spectra["sigma"], rtol=1e-5, atol=1e-6 * largest)
    others = compare(base, merged).matrices
    changed = others.loc[others["frobenius"] > 0, "matrix"].tolist()
    assert changed == found.matrices["matrix"].tolist()
    for one, other in zip(
        match_models(base, adapter).matrices,
        match_models(base, merged, Selection(tuple(changed))).matrices,
        strict=True,
    ):
        torch.testing.assert_close(one.delta().float(), other.delta(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.ends()[1].float(), other.ends()[1], rtol=1e-4, atol=1e-5)


def test_an_adapters_rank_is_exact_and_only_what_it_changes_is_compared(base, tmp_path):
    adapter, _ = adapt(base, tmp_path, **ADAPTERS["plain"])
    found = look.at(base, adapter)
    assert set(found.matrices["rank"]) == {3}
    assert set(found.matrices["source"]) == {"factors"}
    assert set(found.matrices["role"]) == {"q", "up"}
    assert found.comparison.left_out == 21 - 4
    assert (found.comparison.spectra.query("index >= 3")["sigma"] == 0).all()
    by_svd = look.at(base, adapter, method="svd")
    np.testing.assert_allclose(by_svd.comparison.spectra["sigma"], found.comparison.spectra["sigma"], atol=1e-9)
    assert set(by_svd.matrices["rank"]) == {3}


def test_conv1d_adapters_fit_their_base(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 30, "bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path / "base")
    options = {"r": 2, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    adapter, merged = adapt(tmp_path / "base", tmp_path, **options)
    found, dense = compare(tmp_path / "base", adapter), compare(tmp_path / "base", merged, match=["*c_attn", "*c_fc"])
    np.testing.assert_allclose(found.spectra["sigma"], dense.spectra["sigma"], rtol=1e-5, atol=1e-5)
    assert found.matrices[["rows", "cols"]].to_numpy().tolist() == [[48, 16], [64, 16]]
    bare = GPT2Model.from_pretrained(tmp_path / "base")
    bare.save_pretrained(tmp_path / "bare")  # its names lack "transformer."
    again = compare(tmp_path / "bare", adapter)
    np.testing.assert_array_equal(again.spectra["sigma"], found.spectra["sigma"])


def test_what_is_no_plain_product_is_refused_by_name(base, tmp_path):
    adapter, _ = adapt(base, tmp_path, **ADAPTERS["plain"])
    settings = json.loads((adapter / "adapter_config.json").read_text())
    for change, message in [
        ({"use_dora": True}, "use_dora is set, so it adds no plain product to W; merge it"),
        ({"peft_type": "IA3"}, "is an adapter of type IA3"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4', which changes the base model"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters is set"),
    ]:
        (adapter / "adapter_config.json").write_text(json.dumps(settings | change))
        with pytest.raises(BadInput, match=message):
            compare(base, adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(BadInput, match="is an adapter; give its base model first"):
        compare(adapter, base)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    q = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    for change, message in [
        ({f"{q}A.weight": torch.ones(3, 17)}, r"q_proj\.weight is 16×16, but 16×17 for the adapter"),
        ({f"{q}A.weight": torch.ones(4, 16)}, "have no product"),
        (
            {
                "base_model.model.elsewhere.lora_A.weight": torch.ones(1, 2),
                "base_model.model.elsewhere.lora_B.weight": torch.ones(2, 1),
            },
            r"has no elsewhere\.weight, which the adapter",
        ),
        ({"base_model.model.elsewhere.lora_A.weight": torch.ones(1, 2)}, "has lora_A alone"),
    ]:
        save_file(tensors | change, file)
        with pytest.raises(BadInput, match=message):
            compare(base, adapter)
    save_file(tensors | {f"{q}B.weight": torch.full((16, 3), float("nan"))}, file)
    assert look.at(base, adapter).nonfinite == {"model.layers.0.self_attn.q_proj": 48}
    file.rename(adapter / "adapter_model.bin")
    with pytest.raises(
        BadInput, match=r"no adapter_model\.safetensors; adapter_model\.bin is a pickle, and never loaded"
    ):
        compare(base, adapter)


def test_another_alpha_is_another_change_also_from_the_cache(base, tmp_path):
    adapter, _ = adapt(base, tmp_path, **ADAPTERS["plain"])
    settings = json.loads((adapter / "adapter_config.json").read_text())
    first = compare(base, adapter).spectra["sigma"]
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 4 * settings["lora_alpha"]}))
    np.testing.assert_allclose(compare(base, adapter).spectra["sigma"], 4 * first, rtol=1e-12)
    for change, message in [
        ({"lora_alpha": "many"}, "lora_alpha or alpha_pattern"),
        ({"alpha_pattern": ["q_proj"]}, "lora_alpha or alpha_pattern"),
        ({"alpha_pattern": {"(": 3}}, "lora_alpha or alpha_pattern"),
        ({"lora_alpha": float("nan")}, "expected a finite number"),
    ]:
        (adapter / "adapter_config.json").write_text(json.dumps(settings | change))
        with pytest.raises(BadInput, match=message):
            compare(base, adapter)


def test_codes_dora_and_several_adapters_in_an_adapter_are_refused(base, tmp_path):
    adapter, _ = adapt(base, tmp_path, **ADAPTERS["plain"])
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    q = "base_model.model.model.layers.0.self_attn.q_proj"
    for change, message in [
        ({f"{q}.lora_A.weight": torch.ones(3, 16, dtype=torch.int8)}, "is stored as I8, which cannot be subtracted"),
        ({f"{q}.lora_A.weight": torch.ones(3, 16).to(torch.float8_e4m3fn)}, "is stored as F8_E4M3"),
        ({f"{q}.lora_magnitude_vector.weight": torch.ones(16)}, "is of DoRA"),
        ({f"{q}.lora_A.other.weight": torch.ones(3, 16)}, "holds several adapters"),
    ]:
        save_file(tensors | change, file)
        with pytest.raises(BadInput, match=message):
            compare(base, adapter)
    save_file(tensors | {"base_model.model.score.weight": torch.ones(2, 16)}, file)  # of another head
    assert compare(base, adapter).left_out == 21 - 4 + 1


def test_an_adapter_that_changes_nothing_is_said_to(base, tmp_path):
    adapter, _ = adapt(base, tmp_path, **ADAPTERS["plain"])
    file = adapter / "adapter_model.safetensors"
    save_file({name: tensor * ("lora_A" in name) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(BadInput, match="ΔW is exactly zero for all 4 matrices"):
        look.at(base, adapter)
    assert singular_values(np.zeros((2, 2))).tolist() == [0.0, 0.0]
