"""LowRankLinear against the public code, and what merging and restarting promise for any shape."""

import copy

import pytest
import torch
from conftest import golden
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from relora_lab import models, seeds
from relora_lab.errors import BadInput
from relora_lab.lowrank import LowRankLinear, merged_state_dict, unwrap, wrap

CASES = golden("relora_linear")["cases"]


def trained_layer(out_features: int, in_features: int, rank: int, alpha: float, seed: int = 0) -> LowRankLinear:
    """A layer whose B is not zero."""
    random = torch.Generator().manual_seed(seed)
    base = nn.Linear(in_features, out_features)
    with torch.no_grad():
        base.weight.normal_(generator=random)
        layer = LowRankLinear(base, rank, alpha, generator=random)
        layer.lora_B.normal_(generator=random)
    return layer


@pytest.mark.parametrize("case", CASES)
def test_forward_gradients_and_merge_equal_the_public_code(case):
    expected, settings = CASES[case], CASES[case]["settings"]
    base = nn.Linear(settings["in_features"], settings["out_features"], bias=settings["bias"])
    layer = LowRankLinear(base, settings["r"], settings["lora_alpha"])
    with torch.no_grad():
        for name, value in expected["before"].items():
            getattr(layer, name).copy_(torch.tensor(value))
    x = torch.tensor(expected["x"], requires_grad=True)
    y = layer(x)
    y.square().sum().backward()
    assert layer.scale == expected["scale"]
    torch.testing.assert_close(y, torch.tensor(expected["y"]), atol=1e-6, rtol=1e-6)
    found = {"lora_A": layer.lora_A.grad, "lora_B": layer.lora_B.grad, "x": x.grad, "bias": layer.bias.grad}
    for name, gradient in expected["grads"].items():
        expected_gradient = torch.tensor(gradient)
        tolerance = 1e-6 * float(expected_gradient.abs().max())  # float32 sums of up to 60 products
        torch.testing.assert_close(found[name], expected_gradient, atol=tolerance, rtol=0)
    assert layer.weight.grad is None
    layer.merge()
    torch.testing.assert_close(layer.weight, torch.tensor(expected["after_merge"]["weight"]), atol=1e-6, rtol=0)


@given(
    out_features=st.integers(1, 40),
    in_features=st.integers(1, 40),
    rank=st.integers(1, 40),
    alpha=st.floats(0.1, 64),
    seed=st.integers(0, 99),
)
def test_a_restart_keeps_the_function_and_moves_it_into_the_weight(out_features, in_features, rank, alpha, seed):
    layer = trained_layer(out_features, in_features, min(rank, out_features, in_features), alpha, seed)
    x = torch.randn(5, in_features, generator=torch.Generator().manual_seed(seed))
    before, merged = layer(x).detach(), layer.merged_weight()
    layer.restart(seeds.generator(seed))
    scale = float(before.abs().max()) + 1
    torch.testing.assert_close(layer(x) / scale, before / scale, atol=1e-5, rtol=0)
    assert torch.equal(layer.weight, merged)
    assert not layer.lora_B.any()
    assert layer.lora_A.abs().max() <= in_features**-0.5


def test_merge_is_in_float32_for_a_bfloat16_weight():
    layer = trained_layer(24, 16, 4, 4.0).to(torch.bfloat16)
    exact = layer.weight.float() + layer.lora_B.float() @ layer.lora_A.float()
    assert torch.equal(layer.merged_weight(), exact.to(torch.bfloat16))


def test_factors_are_a_function_of_seed_and_name_alone():
    first, second = (wrap(models.build("demo", vocab_size=32, seed=s), 3, seed=5) for s in (0, 1))
    torch.rand(100)  # the global stream plays no part
    other = wrap(models.build("demo", vocab_size=32), 3, seed=6)
    for name in first:
        assert torch.equal(first[name].lora_A, second[name].lora_A)
        assert not torch.equal(first[name].lora_A, other[name].lora_A)
    assert not torch.equal(*(first[f"model.layers.{n}.self_attn.q_proj"].lora_A for n in (0, 1)))


def test_wrap_freezes_the_seven_matrices_of_each_block_and_nothing_else():
    model = models.build("demo", vocab_size=32)
    layers = wrap(model, 2)
    assert len(layers) == 14
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {f"{name}.weight" for name in layers}
    with pytest.raises(ValueError, match=r"no nn\.Linear to wrap"):
        wrap(model, 2)


def test_wrap_refuses_a_rank_by_the_name_of_the_matrix_and_leaves_the_model_alone():
    model = models.build("demo", vocab_size=32)
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj: rank 49 does not fit a matrix of 48×48"):
        wrap(model, 49)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 4))
    with pytest.raises(ValueError, match="1: rank 8 does not fit a matrix of 4×64"):
        wrap(model, 8)
    assert all(type(module) is nn.Linear and module.weight.requires_grad for module in model)


def test_wrap_works_on_any_module_and_leaves_out_what_is_excluded():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    assert list(wrap(model, 2, exclude=["2"])) == ["0"]


def test_unwrap_gives_the_plain_model_back_with_the_same_function():
    model = models.build("demo", vocab_size=32)
    names = set(model.state_dict())
    for layer in wrap(model, 2).values():
        nn.init.normal_(layer.lora_B, std=0.1, generator=torch.Generator().manual_seed(0))
    tokens = torch.arange(20).reshape(2, 10)
    before, merged = model(input_ids=tokens).logits, merged_state_dict(model)
    unwrap(model)
    torch.testing.assert_close(model(input_ids=tokens).logits, before, atol=1e-5, rtol=0)
    assert set(model.state_dict()) == set(merged) == names
    assert all(torch.equal(merged[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_a_base_of_zero_starts_with_both_factors_drawn():
    layer = LowRankLinear(nn.Linear(12, 8), 3)
    layer.start_from_zero(seeds.generator(0))
    assert not layer.weight.any()
    assert 0 < layer.lora_A.abs().max() <= 12**-0.5
    assert 0 < layer.lora_B.abs().max() <= 3**-0.5


def test_a_weight_that_is_shared_is_not_frozen_silently():
    """A head tied to the embedding, in a model that does not say which its head is."""
    model = nn.ModuleDict({"embed": nn.Embedding(30, 16), "block": nn.Linear(16, 16), "head": nn.Linear(16, 30)})
    model["head"].weight = model["embed"].weight
    with pytest.raises(ValueError, match=r"head: its weight is embed\.weight too.*exclude=\['head'\]"):
        wrap(model, 2)
    assert type(model["block"]) is nn.Linear
    assert all(p.requires_grad for p in model.parameters())
    assert list(wrap(model, 2, exclude=["head"])) == ["block"]


def test_wrap_refuses_weights_that_are_not_finite_and_leaves_the_model_alone():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight.data[2, 3] = float("nan")
    before = model[0].weight.clone()
    for method in ("relora", "repissa", "low_rank"):
        with pytest.raises(ValueError, match="1: the weight is not finite"):
            wrap(model, 2, method=method)
        assert all(type(module) is nn.Linear and module.weight.requires_grad for module in model)
        assert torch.equal(model[0].weight, before)


def test_wrap_takes_a_method_and_its_options():
    model = nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 8))
    x, start = torch.randn(3, 12, generator=torch.Generator().manual_seed(0)), model[0].weight.clone()
    y = model(x)
    layers = wrap(model, 3, 6.0, method="reloqra", qr_mode="paper")
    Q, R = torch.linalg.qr(start)
    torch.testing.assert_close(layers["0"].update(), 2 * Q[:, :3] @ R[:3], atol=1e-5, rtol=0)
    assert not torch.allclose(model(x), y)
    assert (layers["0"].in_features, layers["0"].out_features) == (12, 10)
    with pytest.raises(BadInput, match="unknown field 'qr_mod'"):
        wrap(model, 3, method="reloqra", qr_mod="paper")


def test_a_wrapped_model_can_be_copied_and_saved(tmp_path):
    model = nn.Sequential(nn.Linear(12, 10))
    wrap(model, 3)
    torch.save(copy.deepcopy(model), tmp_path / "model.pt")
    assert (tmp_path / "model.pt").stat().st_size > 0
