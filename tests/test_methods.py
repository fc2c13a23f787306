"""Every method's layer: against PEFT's numbers and the definitions, and what a restart does to any of them."""

import pytest
import torch
from conftest import tensors
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from relora_lab import methods, seeds
from relora_lab.errors import BadInput
from relora_lab.lowrank import LowRankLinear, merged_state_dict, unwrap, wrap
from relora_lab.restart import restart

PEFT = {
    "redora": "peft_dora_16x24_nobias",
    "repissa": "peft_pissa_24x16_nobias",
    "reloqra": "peft_olora_20x20_nobias",
}
KEEPING = ["relora", "redora", "repissa", "reloqra"]  # the layers that keep the function at a restart


def linear(W: torch.Tensor, bias: bool = False) -> nn.Linear:
    base = nn.Linear(W.shape[1], W.shape[0], bias=bias, dtype=W.dtype)
    base.weight.data.copy_(W)
    if bias:
        base.bias.data.copy_(torch.linspace(-1, 1, W.shape[0]))
    return base


def made(name: str, out: int, cols: int, rank: int, alpha: float, seed: int = 0, **options) -> LowRankLinear:
    """A layer that has been trained: its factors, and its magnitudes, are not where they began."""
    random = torch.Generator().manual_seed(seed)
    base = linear(torch.randn(out, cols, generator=random))
    layer = methods.layer(name, base, rank, alpha, generator=random, **options)
    with torch.no_grad():
        layer.lora_A.add_(torch.randn(layer.lora_A.shape, generator=random) / cols**0.5)
        layer.lora_B.add_(torch.randn(layer.lora_B.shape, generator=random) / rank**0.5)
        if hasattr(layer, "magnitude"):
            layer.magnitude.mul_(torch.randn(out, generator=random))  # some turn negative
    return layer


def close(found: torch.Tensor, expected: torch.Tensor, within: float) -> None:
    torch.testing.assert_close(found.double(), expected.double(), atol=within, rtol=0)


@pytest.mark.parametrize("name", PEFT)
def test_layers_equal_peft_when_they_begin_and_when_they_train(name):
    golden = tensors(PEFT[name])
    layer = methods.layer(name, linear(golden["W0"]), 4, 8)
    close(layer.weight, golden["init_base"], 5e-6)
    if name != "redora":  # whose A is drawn
        close(layer.lora_B @ layer.lora_A, golden["init_B"] @ golden["init_A"], 5e-6)
    x = golden["x"].requires_grad_()
    close(layer(x), golden["y_init"], 5e-6)
    with torch.no_grad():
        layer.weight.copy_(golden["init_base"])
        layer.lora_A.copy_(golden["A"])
        layer.lora_B.copy_(golden["B"])
        if name == "redora":
            close(layer.magnitude, golden["init_m"], 5e-6)
            layer.magnitude.copy_(golden["m"])
    y = layer(x)
    close(y, golden["y"], 5e-6)
    y.backward(golden["gy"])
    close(layer.lora_A.grad, golden["gA"], 2e-5)
    close(layer.lora_B.grad, golden["gB"], 2e-5)
    close(x.grad, golden["gx"], 2e-5)
    if name == "redora":
        close(layer.magnitude.grad, golden["gm"], 2e-5)
    close(layer.merged_weight(), golden["W_merged"], 5e-6)
    layer.merge()
    close(layer(golden["x"]), golden["y_merged"], 5e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["relora", "redora", "repissa", "reloqra", "reloqra-paper"])
def test_merge_and_new_factors_are_as_defined(name, dtype):
    golden = {key: value.to(dtype) for key, value in tensors("spec_merge_16x24_s1.0").items()}
    method, _, paper = name.partition("-")
    options = {"qr_mode": "paper"} if paper else {}
    layer = methods.layer(method, linear(golden["W"]), 4, 4, **options)
    with torch.no_grad():
        layer.weight.copy_(golden["W"])
        layer.lora_A.copy_(golden["A"])
        layer.lora_B.copy_(golden["B"])
        if name == "redora":
            layer.magnitude.copy_(golden["m"])
    x, within = golden["x"], 5e-6 if dtype == torch.float32 else 1e-12
    before = layer(x)
    merged = layer.merged_weight()
    layer.restart(seeds.generator(0))
    update = layer.update()
    if name in ("relora", "redora"):
        close(merged, golden[f"{name}/W_merged"], within)
        close(layer.weight, golden[f"{name}/W_merged"], within)
        close(before, golden[f"{name}/y"], within)
    if name == "redora":
        close(layer.magnitude, golden["redora/m_new"], within)
    if name == "repissa":
        close(layer.weight, golden["repissa/W_frozen"], within)
        close(update, golden["repissa/sBA"], within)
    if name == "reloqra":
        close(layer.weight, golden["reloqra_residual/W_frozen"], within)
        close(layer.lora_B @ layer.lora_A, golden["reloqra_residual/BA"], within)
    if name == "reloqra-paper":
        close(layer.weight, golden["reloqra_literal/W_frozen"], within)
        close(layer.lora_B @ layer.lora_A, golden["reloqra_literal/BA"], within)
        close(layer.merged_weight(), golden["reloqra_literal/W_eff_after"], within)


@pytest.mark.parametrize("name", KEEPING)
@given(
    out=st.integers(1, 40),
    cols=st.integers(1, 40),
    rank=st.integers(1, 40),
    alpha=st.floats(0.1, 64),
    seed=st.integers(0, 99),
)
def test_wrapping_and_restarting_keep_the_function(name, out, cols, rank, alpha, seed):
    rank = min(rank, out, cols)
    random = torch.Generator().manual_seed(seed)
    base, x = linear(torch.randn(out, cols, generator=random)), torch.randn(5, cols, generator=random)
    expected = base(x).detach()
    wrapped = methods.layer(name, base, rank, alpha)
    close(wrapped(x) / (1 + expected.abs().max()), expected / (1 + expected.abs().max()), 1e-5)
    layer = made(name, out, cols, rank, alpha, seed)
    for cycle in range(3):
        y = layer(x).detach()
        size = 1 + float(y.abs().max()) + float(layer.update().abs().max()) * cols**0.5
        layer.restart(seeds.generator(seed, cycle))
        close(layer(x) / size, y / size, 1e-5)
        close((x @ layer.merged_weight().T) / size, y / size, 1e-5)


@given(st.integers(2, 24), st.integers(2, 24), st.integers(1, 24), st.floats(0.25, 4), st.integers(0, 99))
def test_the_papers_reloqra_jumps_by_what_qr_adds(out, cols, rank, scale, seed):
    rank = min(rank, out, cols)
    layer = made("reloqra", out, cols, rank, scale * rank, seed, qr_mode="paper")
    merged = layer.merged_weight()
    layer.restart()
    Q, R = torch.linalg.qr(merged)
    jumped = merged + scale * (Q[:, :rank] @ R[:rank])
    close(layer.merged_weight() / jumped.abs().max(), jumped / jumped.abs().max(), 1e-5)
    close(layer.weight, merged, 0)
    if rank == min(out, cols):  # Q·R is all of W: it has grown by 1 + s
        close(layer.merged_weight() / merged.abs().max(), (1 + scale) * merged / merged.abs().max(), 1e-4)


@pytest.mark.parametrize("alpha", [4.0, 1.0])
def test_repissa_trains_the_largest_singular_directions(alpha):
    W = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))
    layer = methods.layer("repissa", linear(W), 4, alpha)
    sigma = torch.linalg.svdvals(W)
    close(torch.linalg.svdvals(layer.update())[:4], sigma[:4], 1e-5)
    close(torch.linalg.svdvals(layer.weight.detach())[:8], sigma[4:], 1e-5)
    close(layer.lora_B.norm(dim=0), layer.lora_A.norm(dim=1), 1e-5)  # √(S/s) on either side


def test_a_negative_magnitude_turns_its_momentum_when_it_becomes_a_norm():
    model = nn.Sequential(nn.Linear(12, 10))
    layers = wrap(model, 3, method="redora")
    layer = layers["0"]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    model(x).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        layer.magnitude[::2] *= -1
    before = optimizer.state[layer.magnitude]["exp_avg"].clone()
    squares, y = optimizer.state[layer.magnitude]["exp_avg_sq"].clone(), model(x)
    restart(layers, optimizer, cycle=1, reset="zero")
    after = optimizer.state[layer.magnitude]["exp_avg"]
    close(model(x), y, 1e-5)
    assert bool((layer.magnitude > 0).all())
    assert torch.equal(after[::2], -before[::2])
    assert torch.equal(after[1::2], before[1::2])
    assert torch.equal(optimizer.state[layer.magnitude]["exp_avg_sq"], squares)


@pytest.mark.parametrize("name", ["redora", "lora"])
def test_a_row_of_zeros_is_no_nan(name):
    layer = methods.layer(name, linear(torch.zeros(4, 6)), 2)
    y = layer(torch.ones(3, 6))
    y.sum().backward()
    layer.restart()
    assert not y.any()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.requires_grad)
    assert torch.isfinite(layer.merged_weight()).all()


@pytest.mark.parametrize("name", KEEPING)
def test_bfloat16_weights_are_merged_in_float32(name):
    layer = made(name, 24, 16, 4, 4.0)
    wide = made(name, 24, 16, 4, 4.0)
    layer.to(torch.bfloat16)
    with torch.no_grad():
        for key, value in layer.state_dict().items():
            wide.state_dict()[key].copy_(value)
    assert torch.equal(layer.merged_weight(), wide.merged_weight().to(torch.bfloat16))


@pytest.mark.parametrize("name", KEEPING)
def test_a_callers_autocast_changes_nothing_that_is_merged(name):
    plain, under = (made(name, 24, 16, 4, 4.0) for _ in range(2))
    plain.restart(seeds.generator(0))
    with torch.autocast("cpu", torch.bfloat16):
        merged = under.merged_weight()
        under.restart(seeds.generator(0))
    assert torch.equal(merged, made(name, 24, 16, 4, 4.0).merged_weight())
    assert all(torch.equal(under.state_dict()[key], value) for key, value in plain.state_dict().items())


@pytest.mark.parametrize("name", ["repissa", "reloqra"])
def test_what_is_frozen_in_bfloat16_is_what_the_stored_factors_leave(name):
    W = torch.randn(24, 16, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    layer = methods.layer(name, linear(W), 4)
    rest = W.float() - layer.lora_B.float() @ layer.lora_A.float()
    assert torch.equal(layer.weight, rest.to(torch.bfloat16))


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("name", ["relora", "redora", "repissa"])
def test_quantised_weights_are_merged_in_float32_and_requantised(name, kind):
    pytest.importorskip("bitsandbytes")
    layer = made(name, 32, 64, 4, 4.0, quantise=kind)
    x = torch.randn(9, 64, generator=torch.Generator().manual_seed(1))
    close(layer(x), x @ layer.merged_weight().T, 1e-4)
    exact = layer.merged_weight()
    layer.restart(seeds.generator(0))
    most = 0.01 if kind == "int8" else 0.12
    assert 0 < layer.quantisation_error < most
    frozen = exact - layer.update()
    error = (layer.frozen_weight() - frozen).norm() / frozen.norm()
    assert float(error) == pytest.approx(layer.quantisation_error, rel=1e-2)


def test_a_quantised_model_is_saved_merged_and_unwraps():
    pytest.importorskip("bitsandbytes")
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 16))
    names = set(model.state_dict())
    wrap(model, 2, quantise="int8")
    saved = merged_state_dict(model)
    assert set(saved) == names
    unwrap(model)
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())


def test_all_methods_are_there_and_unknown_ones_are_named():
    named = "adam_mini full galore lora low_rank online_relora redora reloqra relora repissa"
    assert methods.available() == named.split()
    with pytest.raises(BadInput, match="unknown method 'repisa'; did you mean 'repissa'"):
        methods.layer("repisa", nn.Linear(4, 4), 2)
    with pytest.raises(BadInput, match="galore trains whole matrices; it has no low-rank layer"):
        methods.layer("galore", nn.Linear(4, 4), 2)
    with pytest.raises(BadInput, match=r"method\.qr_mode: expected 'residual' or 'paper'"):
        methods.layer("reloqra", nn.Linear(4, 4), 2, qr_mode="papr")
    with pytest.raises(BadInput, match=r"method\.rank: expected a whole number"):
        methods.layer("relora", nn.Linear(4, 4), 2.0)
    with pytest.raises(ValueError, match=r"Conv1d is no nn\.Linear"):
        methods.layer("relora", nn.Conv1d(4, 4, 1), 2)
    with pytest.raises(ValueError, match="rank 5 does not fit a matrix of 4×6"):
        methods.layer("repissa", nn.Linear(6, 4), 5)


@pytest.mark.parametrize("name", ["dora", "pissa", "olora"])
@given(
    out=st.integers(1, 24),
    cols=st.integers(1, 24),
    rank=st.integers(1, 24),
    alpha=st.floats(0.5, 16),
    bias=st.booleans(),
    seed=st.integers(0, 9),
)
def test_layers_equal_peft_for_any_shape(name, out, cols, rank, alpha, bias, seed):
    rank = min(rank, out, cols)
    peft = pytest.importorskip("peft")
    random = torch.Generator().manual_seed(seed)
    W, x = torch.randn(out, cols, generator=random), torch.randn(5, cols, generator=random)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=["0"],
        use_dora=name == "dora",
        init_lora_weights=True if name == "dora" else name,
    )
    theirs = peft.get_peft_model(nn.Sequential(linear(W, bias)), config).base_model.model[0]
    mine = methods.layer(
        {"dora": "redora", "pissa": "repissa", "olora": "reloqra"}[name], linear(W, bias), rank, alpha
    )
    A, B = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    size = 1 + float(W.abs().max())
    if name != "dora":
        close(mine.weight / size, theirs.base_layer.weight / size, 5e-6)
        close(mine.lora_B @ mine.lora_A / size, B @ A / size, 5e-6)
    with torch.no_grad():
        for factor, other in ((mine.lora_A, A), (mine.lora_B, B)):
            factor.copy_(torch.randn(factor.shape, generator=random) / 4)
            other.copy_(factor)
    y, expected = mine(x), theirs(x)
    size = 1 + float(expected.detach().abs().max())
    close(y / size, expected / size, 5e-6)
    grads = [torch.autograd.grad(value.square().sum(), of) for value, of in ((y, mine.lora_A), (expected, A))]
    largest = 1 + float(grads[1][0].abs().max())
    close(grads[0][0] / largest, grads[1][0] / largest, 2e-5)
