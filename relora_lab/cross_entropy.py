"""The loss of a language model's head, from hidden states, without a tensor of all its logits.

Logits of tokens × vocabulary in float32, their log-softmax and its gradient are a training step's largest tensors.
Here some tokens' logits become their losses and then, in place, their gradient, before the next tokens' are made: as
in Liger Kernel's fused linear cross-entropy (Hsu et al. 2024, arXiv:2410.10989).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from relora_lab.costs import LOGITS, SOFTMAX
from relora_lab.precision import product_dtype


def mean_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Mean over tokens of −log softmax(hidden headᵀ)[target] in nats, in float32 or wider.

    `hidden` (tokens, width) and `head` (vocabulary, width), of one dtype or under autocast; `targets` (tokens,), the
    class numbers. Where gradients are enabled they are made at once and kept instead of logits: it can be
    differentiated once, and one backward pass can go through it. Not for float16, in which their sums overflow.
    """
    dtype = product_dtype(hidden.device, hidden.dtype)
    if torch.is_grad_enabled():
        loss: Tensor = _MeanCrossEntropy.apply(hidden, head, targets, dtype)
        return loss
    hidden, head = hidden.to(dtype), head.to(dtype)
    summed = [_to_gradient_(hidden[rows] @ head.T, targets[rows]) for rows in _parts(hidden, head)]
    return torch.stack(summed).sum() / len(targets)


class _MeanCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        x, W = hidden.to(dtype), head.to(dtype)
        of_hidden, of_head, *_ = ctx.needs_input_grad
        d_hidden = torch.empty_like(hidden) if of_hidden else None
        d_head, summed = None, []
        for rows in _parts(x, W):
            logits = x[rows] @ W.T
            summed.append(_to_gradient_(logits, targets[rows]))
            if d_hidden is not None:
                d_hidden[rows] = logits @ W
            if of_head:
                d_head = _add_product(d_head, logits.T, x[rows])
            del logits  # before the next ones are made
        ctx.save_for_backward(d_hidden, d_head if d_head is None else d_head.to(head.dtype))
        ctx.tokens, ctx.used = len(targets), False
        return torch.stack(summed).sum() / ctx.tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.used:
            raise RuntimeError("the loss's gradients are scaled in place, so only one backward pass can use them")
        ctx.used = True
        scaled = (None if d is None else d.mul_(gradient / ctx.tokens) for d in ctx.saved_tensors)
        return *scaled, None, None


def _parts(x: Tensor, W: Tensor) -> Iterator[slice]:
    """Which tokens' logits are made at once."""
    size = max(1, LOGITS // (len(W) * W.element_size()))
    return (slice(start, start + size) for start in range(0, len(x), size))


def _to_gradient_(logits: Tensor, targets: Tensor) -> Tensor:
    """Put softmax − one-hot in place of the logits (tokens, vocabulary); returns the sum of their losses."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    size = max(1, SOFTMAX // logits.shape[1])
    losses = []
    for part, these in zip(logits.split(size), targets.split(size), strict=True):
        these = these[:, None]
        target = part.gather(1, these).to(wide)
        largest = part.amax(1, keepdim=True).to(wide)
        p = torch.softmax(part, 1, dtype=wide)
        # log Σ exp from the largest logit, whose p is no less than 1/vocabulary.
        losses.append((largest - p.amax(1, keepdim=True).log() - target).sum())
        part.copy_(p.scatter_add_(1, these, p.new_full((len(p), 1), -1.0)))
        del p  # before the next one is made
    return torch.stack(losses).sum()


def _add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total + ab, summed up in float32 or wider."""
    wide = torch.promote_types(a.dtype, torch.float32)
    if total is None:
        return a @ b
    if a.dtype == wide:
        return total.addmm_(a, b)
    return total.to(wide).add_(a @ b)
