"""AdamW: torch's to the bit where nothing is rounded, and moments that stay in the dtype they are asked for."""

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from relora_lab.optim.adamw import AdamW


def trained(make, dtype=torch.float32, steps=25, seed=0, **options):
    """A weight (6, 5) after some steps, and its optimizer."""
    random = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(6, 5, generator=random).to(dtype))
    optimizer = make([weight], lr=0.01, **options)
    for _ in range(steps):
        weight.grad = torch.randn(6, 5, generator=random).to(dtype)
        optimizer.step()
    return weight, optimizer


@given(
    dtype=st.sampled_from([torch.float32, torch.float64]),
    betas=st.sampled_from([(0.9, 0.999), (0.5, 0.95), (0.0, 0.9)]),
    eps=st.sampled_from([1e-8, 1e-3]),
    decay=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 99),
)
def test_equals_torch(dtype, betas, eps, decay, seed):
    options = {"betas": betas, "eps": eps, "weight_decay": decay}
    theirs, reference = trained(torch.optim.AdamW, dtype, seed=seed, foreach=False, **options)
    ours, optimizer = trained(AdamW, dtype, seed=seed, **options)
    assert torch.equal(ours, theirs)
    for key, value in optimizer.state[ours].items():
        assert torch.equal(torch.as_tensor(value, dtype=dtype), reference.state[theirs][key].to(dtype)), key


def test_moments_live_in_their_own_dtype_and_weights_in_theirs():
    weight, optimizer = trained(AdamW, torch.bfloat16, state_dtype=torch.float32)
    assert weight.dtype == torch.bfloat16
    assert {optimizer.state[weight][key].dtype for key in ("exp_avg", "exp_avg_sq")} == {torch.float32}
    weight, optimizer = trained(AdamW, torch.bfloat16)
    assert optimizer.state[weight]["exp_avg"].dtype == torch.bfloat16
    assert set(optimizer.state[weight]) == {"step", "exp_avg", "exp_avg_sq"}


def test_bf16_moments_are_float32_ones_rounded_once_a_step():
    exact, optimizer = trained(AdamW, steps=1)
    rounded, other = trained(AdamW, steps=1, state_dtype=torch.bfloat16)
    assert torch.equal(exact, rounded)  # the first step has nothing rounded to start from
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(optimizer.state[exact][key].bfloat16(), other.state[rounded][key])


@pytest.mark.parametrize(("beta2", "decays"), [(0.999, False), (0.99, True)])
def test_the_second_moment_never_decays_in_bf16(beta2, decays):
    left = {}
    for dtype in (torch.bfloat16, torch.float32):
        weight, optimizer = trained(AdamW, betas=(0.9, beta2), state_dtype=dtype)
        before = optimizer.state[weight]["exp_avg_sq"].clone()
        for _ in range(300):
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
        left[dtype] = optimizer.state[weight]["exp_avg_sq"].float() / before.float()
    torch.testing.assert_close(left[torch.float32], torch.full((6, 5), beta2**300), rtol=1e-4, atol=0)
    assert bool((left[torch.bfloat16] == 1).all()) != decays


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", [None, torch.float32, torch.bfloat16])
def test_goes_on_from_a_file_to_the_same_bits(dtype, state_dtype):
    weight, optimizer = trained(AdamW, dtype, state_dtype=state_dtype)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    copy = nn.Parameter(weight.detach().clone())
    fresh = AdamW([copy], lr=7.0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(5):
        weight.grad = copy.grad = torch.ones_like(weight)
        optimizer.step()
        fresh.step()
    assert torch.equal(weight, copy)
    for key, value in optimizer.state[weight].items():
        other = fresh.state[copy][key]
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(other))
        assert getattr(value, "dtype", int) == getattr(other, "dtype", int)


def test_a_loaded_state_shares_no_memory():
    weight, optimizer = trained(AdamW)
    copy = nn.Parameter(weight.detach().clone())
    fresh = AdamW([copy], lr=0.01)
    fresh.load_state_dict(optimizer.state_dict())
    before = optimizer.state[weight]["exp_avg"].clone()
    copy.grad = torch.ones_like(copy)
    fresh.step()
    assert torch.equal(optimizer.state[weight]["exp_avg"], before)


def test_a_weight_without_a_gradient_is_left_alone():
    weight = nn.Parameter(torch.ones(3))
    optimizer = AdamW([weight], lr=1.0, weight_decay=0.5)
    assert optimizer.step(lambda: 2.5) == 2.5
    assert torch.equal(weight, torch.ones(3))
    assert weight not in optimizer.state


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", -1.0),
        ("lr", float("nan")),
        ("eps", -1e-8),
        ("betas", (0.9, 1.0)),
        ("betas", (0.9,)),
        ("weight_decay", float("inf")),
        ("state_dtype", torch.int8),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}: must be "):
        AdamW([nn.Parameter(torch.ones(3))], **{"lr": 0.1, field: value})


def test_a_group_that_cannot_be_used_is_not_kept():
    optimizer = AdamW([nn.Parameter(torch.ones(3))], lr=0.1)
    with pytest.raises(ValueError, match=r"^eps"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "eps": -1.0})
    assert len(optimizer.param_groups) == 1
