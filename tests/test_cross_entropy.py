"""The loss from hidden states is F.cross_entropy of all logits, in parts of any size, and makes no tensor of them."""

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_near
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from relora_lab import cross_entropy
from relora_lab.cross_entropy import mean_cross_entropy


def inputs(tokens, width, vocabulary, seed=0, scale=1.0):
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=random)
    head = scale * torch.randn(vocabulary, width, generator=random)
    return hidden, head, torch.randint(vocabulary, (tokens,), generator=random)


def outcome(loss, hidden, head, targets):
    """The loss, and the gradients of a multiple of it."""
    hidden, head = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    value = loss(hidden, head, targets)
    (value * 0.25).backward()
    return value.detach(), hidden.grad, head.grad


def definition(hidden, head, targets):
    return F.cross_entropy(hidden.double() @ head.double().T, targets)


@given(
    tokens=st.integers(1, 40),
    width=st.integers(1, 24),
    vocabulary=st.integers(2, 60),
    seed=st.integers(0, 99),
    scale=st.floats(0, 30),
    logits=st.integers(1, 10000),
    softmax=st.integers(1, 500),
)
def test_it_is_the_definition_whatever_the_parts(tokens, width, vocabulary, seed, scale, logits, softmax):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "LOGITS", logits)
        patch.setattr(cross_entropy, "SOFTMAX", softmax)
        given = inputs(tokens, width, vocabulary, seed, scale)
        found, expected = outcome(mean_cross_entropy, *given), outcome(definition, *given)
        with torch.no_grad():
            assert torch.equal(mean_cross_entropy(*given), found[0])
    # The largest logit decides how exact float32 can be.
    reach = 1 + float((given[0] @ given[1].T).abs().max())
    assert abs(float(found[0] - expected[0])) <= 3e-7 * reach
    assert_near(found[1:], expected[1:], 1e-6 * reach)


def test_parts_do_not_change_the_result_in_bfloat16(monkeypatch):
    given = inputs(64, 32, 50)
    exact = outcome(definition, *given)
    for logits in (2**26, 64 * 50, 7 * 50 * 2):
        monkeypatch.setattr(cross_entropy, "LOGITS", logits)
        with torch.autocast("cpu", torch.bfloat16):
            loss, *gradients = outcome(mean_cross_entropy, *given)
        assert loss.dtype == torch.float32
        assert [gradient.dtype for gradient in gradients] == [torch.float32] * 2
        assert_near([loss, *gradients], exact, 2**-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    hidden, head, targets = inputs(30, 16, 40)
    given = hidden.to(dtype), head.to(dtype), targets
    loss, *gradients = outcome(mean_cross_entropy, *given)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert {gradient.dtype for gradient in gradients} == {dtype}
    assert_near([loss, *gradients], outcome(definition, *given), 1e-14 if dtype == torch.float64 else 2**-6)


def test_float64_stays_float64_under_autocast():
    hidden, head, targets = inputs(9, 4, 7)
    with torch.autocast("cpu", torch.bfloat16):
        found = mean_cross_entropy(hidden.double(), head.double(), targets)
    torch.testing.assert_close(found, definition(hidden, head, targets), rtol=1e-14, atol=0)


@pytest.mark.parametrize("largest", [60.0, 1e4, 1e30])
def test_logits_far_apart(largest):
    """A target without a chance has a loss of the difference, not infinity; certainty a loss of 0."""
    hidden, head = torch.ones(2, 1), torch.tensor([[largest], [0.0]])
    loss = mean_cross_entropy(hidden, head, torch.tensor([0, 1]))
    assert float(loss) == pytest.approx(largest / 2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_does_not_pass_for_a_loss(bad):
    hidden, head, targets = inputs(5, 4, 6)
    hidden[2, 1] = bad
    assert not mean_cross_entropy(hidden, head, targets).isfinite()


@pytest.mark.parametrize("trained", [(True, False), (False, True)])
def test_only_what_is_trained_has_a_gradient(trained):
    hidden, head, targets = inputs(5, 4, 6)
    for tensor, on in zip((hidden, head), trained, strict=True):
        tensor.requires_grad_(on)
    mean_cross_entropy(hidden, head, targets).backward()
    assert (hidden.grad is not None, head.grad is not None) == trained


def test_a_second_backward_pass_is_an_error():
    hidden, head, targets = inputs(5, 4, 6)
    loss = mean_cross_entropy(hidden.requires_grad_(), head.requires_grad_(), targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only one backward pass"):
        loss.backward()


class Largest(TorchDispatchMode):
    """The entries of the largest float32 tensor that is made inside."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                self.entries = max(self.entries, tensor.numel())
        return result


@pytest.mark.parametrize("autocast", [True, False])
def test_no_float32_tensor_has_all_logits(autocast):
    hidden, head, targets = inputs(5000, 8, 8000)
    with Largest() as seen, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outcome(mean_cross_entropy, hidden, head, targets)
    assert seen.entries <= (cross_entropy.SOFTMAX if autocast else cross_entropy.LOGITS / 4) < 5000 * 8000
