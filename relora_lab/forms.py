"""How x(W + s·B·A)ᵀ is computed: three forms, of which the layer takes the one that costs least (costs.py).

With W (m, n), rank r and T rows of x, a product of (a, b) and (b, c) costing 2abc:

apart         y = xWᵀ + s(xAᵀ)Bᵀ          4Tmn + 6Tr(m + n) with the backward pass
merged        y = xVᵀ, V = W + s·B·A       4Tmn + 4Tr(m + n), and 2mnr for V, once for all x that see the same weights
by gradient   merged; dA = s·BᵀG and dB = s·GAᵀ from G = dYᵀx        6Tmn + 4mnr, and V

In float32 they agree in values and gradients to rounding; in bfloat16 V is rounded once, as full-rank training's W.
V is never kept from one change of the weights to the next, so it cannot be stale.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from relora_lab.costs import full_gradient_pays, rows_at_once


class Weight(NamedTuple):
    """W, or V = W + s·B·A if `merged`, in the dtype of the product.

    Autograd keeps it for the backward pass; with `make` it keeps what W is `held` in instead, and make(B, A, *held)
    gives it again.
    """

    tensor: Tensor
    merged: bool
    make: Callable[..., Tensor] | None = None
    held: tuple[Tensor, ...] = ()


def as_it_is(W: Tensor) -> Tensor:
    """How a weight is read that is held as one tensor."""
    return W


def frozen_weight(read: Callable[..., Tensor], B: Tensor, _A: Tensor, *held: Tensor) -> Tensor:
    """W in the factors' dtype, of the tensors that it is held in."""
    return read(*held).to(B.dtype)


def merged_weight(read: Callable[..., Tensor], scale: float, B: Tensor, A: Tensor, *held: Tensor) -> Tensor:
    """W + s·B·A in the factors' dtype."""
    return merge(read(*held), B, A, scale)


def merge(W: Tensor, B: Tensor, A: Tensor, scale: float) -> Tensor:
    """W + s·B·A in the factors' dtype, rounded once from the sum in W's if that is wider."""
    if B.dtype == W.dtype and W.dtype in (torch.float32, torch.float64):
        return torch.addmm(W, B, A, alpha=scale)
    merged = B @ A
    rows = rows_at_once(W.shape[1], W.device.type)
    for of_W, part in zip(W.split(rows), merged.split(rows), strict=True):
        part.copy_(torch.add(of_W, part, alpha=scale))
    return merged


def low_rank_linear(x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None, scale: float, weight: Weight) -> Tensor:
    """y = x(W + s·B·A)ᵀ + b for x (…, n), A (r, n), B (m, r), all of one dtype; W gets no gradient.

    It can be differentiated once, by backward (not by torch.func). Gradients are those at the weights of the forward
    pass; where it kept a weight itself, and that was changed since, the backward pass raises RuntimeError.
    """
    result: Tensor = _LowRankLinear.apply(x, A, B, bias, scale, weight)
    return result


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None, scale: float, weight: Weight
    ) -> Tensor:
        y, z = F.linear(x, weight.tensor, bias), None
        if not weight.merged:
            z = F.linear(x, A)
            y.view(-1, len(B)).addmm_(_flat(z), B.T, alpha=scale)
        ctx.scale, ctx.merged, ctx.make = scale, weight.merged, weight.make
        ctx.save_for_backward(x, A, B, z, *(weight.held if weight.make else (weight.tensor,)))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dY: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(dY.device.type, enabled=False):  # it was on or off in the forward pass
            return _gradients(ctx, dY)


def _gradients(ctx: Any, dY: Tensor) -> tuple[Tensor | None, ...]:
    of_x, of_A, of_B, of_bias, *_ = ctx.needs_input_grad
    x, A, B, z, *held = ctx.saved_tensors
    shape, x, dY = x.shape, _flat(x), _flat(dY)
    dx: Any = None
    dA = dB = None
    if of_x:
        dx = dY @ (ctx.make(B, A, *held) if ctx.make else held[0])
    if ctx.merged and of_A and of_B and full_gradient_pays(len(x), len(B), len(A.T), len(A)):
        G = dY.T @ x
        dA, dB = (B.T @ G).mul_(ctx.scale), (G @ A.T).mul_(ctx.scale)
    else:
        dZ = (dY @ B).mul_(ctx.scale)
        if of_x and not ctx.merged:
            dx.addmm_(dZ, A)
        if of_A:
            dA = dZ.T @ x
        if of_B:
            dB = (dY.T @ (F.linear(x, A) if z is None else _flat(z))).mul_(ctx.scale)
    return dx.view(shape) if of_x else None, dA, dB, dY.sum(0) if of_bias else None, None, None


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
