"""Quantised frozen weights: what the codes lose, and what they keep to the bit."""

import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from relora_lab import quantise
from relora_lab.errors import BadInput
from relora_lab.quantise import BLOCK, QuantisedWeight

KINDS = ("int8", "nf4")
# QLoRA, appendix E.
NEGATIVE = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500]
POSITIVE = [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
NF4 = torch.tensor([*NEGATIVE, 0.0, *POSITIVE])
# ‖error‖ / ‖W‖ of Gaussian weights in blocks of 64. int8: steps of max/127 and E[max²] = 6.92 σ², so
# √(6.92/12)/127 = 0.0060. nf4: what the nearest of the 16 points above gives.
GAUSSIAN = {"int8": 0.0060, "nf4": 0.092}

shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))
kinds = st.sampled_from(KINDS)
seeds = st.integers(0, 99)


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    pytest.importorskip("bitsandbytes")


def gaussian(shape: tuple[int, int], seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def blocks(matrix: torch.Tensor) -> torch.Tensor:
    return F.pad(matrix.reshape(-1), (0, -matrix.numel() % BLOCK)).view(-1, BLOCK)


@given(shape=shapes, seed=seeds, exponent=st.integers(-20, 20))
def test_int8_is_off_by_half_a_step_of_the_block_at_most(shape, seed, exponent):
    weight = gaussian(shape, seed, 10.0**exponent)
    quantised = QuantisedWeight(weight, "int8")
    half_step = blocks(weight).abs().amax(1, keepdim=True) / 254
    error = blocks(quantised.dequantise() - weight).abs()
    assert (error <= half_step * 1.005).all()  # the CPU codec looks w / scale up in a table of 2¹⁶ places
    assert torch.equal(quantised.scales, blocks(weight).abs().amax(1))


@given(shape=shapes, seed=seeds, exponent=st.integers(-20, 20))
def test_nf4_is_off_by_half_its_widest_gap_at_most(shape, seed, exponent):
    weight = gaussian(shape, seed, 10.0**exponent)
    half_gap = (1 - 0.6961928) / 2
    error = blocks(QuantisedWeight(weight, "nf4").dequantise() - weight).abs()
    assert (error <= half_gap * 1.00001 * blocks(weight).abs().amax(1, keepdim=True)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gaussian_weights_lose_as_much_as_is_known_and_store_says_so(kind):
    weight = gaussian((256, 300))
    quantised = QuantisedWeight(torch.zeros(256, 300), kind)
    error = quantised.store(weight)
    assert error == pytest.approx(GAUSSIAN[kind], rel=0.02)
    assert error == pytest.approx(float((quantised.dequantise() - weight).norm() / weight.norm()), rel=1e-4)
    assert quantised.store(weight * 1e-25) == pytest.approx(error, rel=1e-3)  # its squares underflow
    assert quantised.store(weight * 1e25) == pytest.approx(error, rel=1e-3)


def test_nf4_takes_the_nearest_code_point_of_the_paper():
    weight = gaussian((512, BLOCK))
    scales = weight.abs().amax(1, keepdim=True)
    nearest = NF4[(weight[..., None] / scales[..., None] - NF4).abs().argmin(-1)] * scales
    found = QuantisedWeight(weight, "nf4").dequantise()
    torch.testing.assert_close(found, nearest, atol=1e-6, rtol=1e-6)
    assert (found - weight).norm() / weight.norm() == pytest.approx(GAUSSIAN["nf4"], rel=0.02)


@given(shape=shapes, kind=kinds, seed=seeds)
def test_what_was_dequantised_is_stored_without_loss(shape, kind, seed):
    quantised = QuantisedWeight(gaussian(shape, seed), kind)
    once, codes = quantised.dequantise(), quantised.codes.clone()
    assert quantised.store(once) == 0
    assert torch.equal(quantised.dequantise(), once)
    assert (quantised.codes != codes).float().mean() < 0.05  # int8 has two codes for 0


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(kind):
    weight = gaussian((9, 11))
    weight[2:4] = 0
    quantised = QuantisedWeight(weight, kind)
    assert not quantised.dequantise()[2:4].any()
    assert quantised.store(torch.zeros(9, 11)) == 0
    assert not quantised.dequantise().any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
def test_a_weight_that_is_not_finite_is_refused_and_changes_nothing(kind, bad):
    weight = gaussian((5, 7)).double()
    quantised = QuantisedWeight(weight, kind)
    before = quantised.dequantise()
    weight[3, 2] = bad
    with pytest.raises(ValueError, match="not finite"):
        quantised.store(weight)
    assert torch.equal(quantised.dequantise(), before)
    assert before.dtype == torch.float64
    with pytest.raises(ValueError, match="shape"):
        quantised.store(weight.T)
    with pytest.raises(ValueError, match="matrix"):
        QuantisedWeight(torch.ones(3), kind)


@given(shape=shapes, kind=kinds, seed=seeds)
def test_a_state_saved_and_loaded_is_the_same_to_the_bit(tmp_path_factory, shape, kind, seed):
    path = tmp_path_factory.mktemp("state") / "weights.safetensors"
    saved = QuantisedWeight(gaussian(shape, seed), kind)
    save_file(saved.state_dict(), path)
    loaded = QuantisedWeight(torch.ones(shape), kind)
    loaded.load_state_dict(load_file(path))
    assert torch.equal(loaded.dequantise(), saved.dequantise())
    assert torch.equal(loaded.codes, saved.codes)
    assert {tensor.dtype for tensor in saved.state_dict().values()} == {torch.uint8, torch.float32}


@pytest.mark.parametrize(("kind", "per_weight"), [("int8", 1.0), ("nf4", 0.5)])
def test_bytes_held(kind, per_weight):
    quantised = QuantisedWeight(gaussian((96, 64)), kind)
    assert quantised.nbytes == 96 * 64 * (per_weight + 4 / BLOCK)
    assert quantised.nbytes == sum(buffer.nbytes for buffer in quantised.buffers() if buffer.ndim)
    assert not list(quantised.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_dtype_leaves_the_scales_alone(kind):
    model = nn.Sequential(QuantisedWeight(gaussian((9, 11)), kind))
    exact = model[0].dequantise()
    model.to(torch.bfloat16)
    assert model[0].dtype == torch.bfloat16
    assert torch.equal(model[0].dequantise(), exact.to(torch.bfloat16))
    assert torch.equal(model[0].dequantise(torch.float32), exact)
    assert torch.equal(model.float()[0].dequantise(), exact)
    assert model[0].device == torch.device("cpu")


def test_without_the_library_the_message_names_field_and_fix(monkeypatch):
    quantise._library.cache_clear()
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(BadInput, match=r"method\.quantise.*pip install 'relora-lab\[quant\]'"):
        quantise.require_library("nf4")
    monkeypatch.undo()
    quantise.require_library("nf4")
    with pytest.raises(BadInput, match=r"method\.quantise"):
        quantise.require_library("int3")
