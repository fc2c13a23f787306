"""Norm and gated MLP are transformers' own in values and gradients, keep less, and leave the model what it was."""

import copy

import pytest
import torch
from conftest import assert_near, kept_for_backward
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from relora_lab import blocks, models

CONFIG = models.llama_config("demo", vocab_size=64)


def both(kind, dtype=torch.float32, seed=0):
    """transformers' module and ours with the same weights, which are not those of a beginning."""
    theirs = LlamaRMSNorm(CONFIG.hidden_size) if kind == "norm" else LlamaMLP(CONFIG)
    random = torch.Generator().manual_seed(seed)
    for parameter in theirs.parameters():
        parameter.data.normal_(generator=random)
    ours = copy.deepcopy(theirs)
    blocks.use_in(ours)
    assert type(ours) is not type(theirs)
    return theirs.to(dtype), ours.to(dtype)


def outcome(module, x):
    """What comes out, and the gradients of x and of every weight."""
    x = x.detach().requires_grad_()
    y = module(x)
    weights = torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [x, *module.parameters()], weights)]


@given(
    kind=st.sampled_from(["norm", "mlp"]),
    shape=st.lists(st.integers(1, 7), min_size=0, max_size=3),
    size=st.integers(-12, 12),
    rows=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_they_are_transformers_own(kind, shape, size, rows, seed):
    theirs, ours = both(kind, seed=seed)
    x = 2.0**size * torch.randn(*shape, CONFIG.hidden_size, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "rows_at_once", lambda *_: rows)
        found, expected = outcome(ours, x), outcome(theirs, x)
    assert torch.equal(found[0], expected[0])
    assert_near(found, expected, 2e-6)


@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"),
    [
        ("norm", torch.bfloat16, 2**-6),
        ("mlp", torch.bfloat16, 2**-6),
        ("norm", torch.float64, 1e-6),  # transformers' norm computes in float32
        ("mlp", torch.float64, 1e-13),
    ],
)
def test_other_dtypes(kind, dtype, tolerance):
    theirs, ours = both(kind, dtype)
    x = torch.randn(2, 9, CONFIG.hidden_size, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = outcome(ours, x)
    assert {tensor.dtype for tensor in found} == {dtype}
    assert_near(found, outcome(theirs, x), tolerance)


@pytest.mark.parametrize("kind", ["norm", "mlp"])
def test_rows_of_any_layout(kind):
    theirs, ours = both(kind)
    x = torch.randn(CONFIG.hidden_size, 5, 4).permute(2, 1, 0)
    assert not x.is_contiguous()
    assert_near(outcome(ours, x), outcome(theirs, x), 2e-6)


def test_under_autocast_the_norm_rounds_for_the_products_that_read_it():
    theirs, ours = both("norm")
    x = torch.randn(3, CONFIG.hidden_size)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = ours(x), theirs(x)
    assert (found.dtype, expected.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(found, expected.to(torch.bfloat16))


@pytest.mark.parametrize(("kind", "most"), [("norm", 0), ("mlp", 3 * CONFIG.intermediate_size)])
def test_what_is_kept_beside_the_input(kind, most):
    """1/rms; and gate, up and what down reads."""
    _, ours = both(kind)
    x = torch.randn(10, CONFIG.hidden_size, requires_grad=True)
    kept = kept_for_backward(lambda: ours(x), [x, *ours.parameters()])
    assert sum(tensor.numel() for tensor in kept) == 10 * (most + (kind == "norm"))


@pytest.mark.parametrize("autocast", [False, True])
def test_a_whole_model_is_transformers_own(autocast):
    ours = models.build("9M", vocab_size=300, seed=3)
    theirs = LlamaForCausalLM(ours.config)
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randint(300, (3, 70), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = [model(tokens, use_cache=False).logits for model in (ours, theirs)]
    assert torch.equal(*logits)
    for each in logits:
        each.float().square().sum().backward()
    gradients = ([parameter.grad for parameter in model.parameters()] for model in (ours, theirs))
    assert_near(*gradients, 2**-5 if autocast else 1e-5)  # sums of a few thousand terms


def test_masks_and_caches_are_left_to_transformers():
    ours = models.build("demo", vocab_size=64)
    theirs = LlamaForCausalLM(ours.config)
    theirs.load_state_dict(ours.state_dict())
    tokens, mask = torch.arange(12).view(2, 6), torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    assert torch.equal(*(model(tokens, attention_mask=mask, use_cache=False).logits for model in (ours, theirs)))
    options = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(*(model.generate(tokens, **options) for model in (ours, theirs)))


@pytest.mark.parametrize(
    "other", [{"hidden_act": "gelu"}, {"attn_implementation": "eager"}, {"attention_dropout": 0.5}]
)
def test_what_a_configuration_asks_for_else_is_done(other):
    ours = models.build(LlamaConfig(**CONFIG.to_dict() | other))
    theirs = LlamaForCausalLM(ours.config)
    theirs.load_state_dict(ours.state_dict())
    tokens, logits = torch.arange(12).view(2, 6), []
    for model in (ours, theirs):
        torch.manual_seed(0)
        logits.append(model.train()(tokens, use_cache=False).logits)
    assert torch.equal(*logits)
    torch.manual_seed(1)
    assert torch.equal(ours(tokens, use_cache=False).logits, logits[0]) == ("attention_dropout" not in other)


def test_a_model_is_saved_and_opened_as_before(tmp_path):
    model = models.build("demo", vocab_size=64)
    assert isinstance(model, LlamaForCausalLM)
    assert list(model.state_dict()) == list(LlamaForCausalLM(CONFIG).state_dict())
    model.save_pretrained(tmp_path)
    tokens = torch.arange(12).view(2, 6)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(opened(tokens).logits, model(tokens).logits, atol=1e-5, rtol=0)
