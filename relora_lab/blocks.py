"""What is not a product in a LLaMA block, each as one function of autograd: less memory is moved, and less kept.

transformers' norm keeps its input and the normalised vector for the backward pass, its MLP also silu(gate): here both
are made again. On a CPU rows are taken a few at a time, which stay in its cache from one operation to the next.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm

from relora_lab.costs import rows_at_once
from relora_lab.precision import product_dtype


class RMSNorm(LlamaRMSNorm):
    """transformers' norm. Under autocast it rounds once what every product that reads it would round for itself."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = _RMSNorm.apply(x, self.weight, self.variance_epsilon)
        return result


class GatedMLP(LlamaMLP):
    """transformers' MLP, down(silu(gate(x)) · up(x)); with another activation it is theirs."""

    def forward(self, x: Tensor) -> Tensor:
        if self.config.hidden_act != "silu":
            theirs: Tensor = super().forward(x)
            return theirs
        result: Tensor = self.down_proj(_Gate.apply(self.gate_proj(x), self.up_proj(x)))
        return result


class Attention(LlamaAttention):
    """transformers' attention of whole sequences by sdpa; theirs with a mask, cache, dropout or another kernel."""

    def forward(self, hidden_states: Tensor, position_embeddings: Any = None, **others: Any) -> tuple[Tensor, Any]:
        masked = any(others.get(name) is not None for name in ("attention_mask", "past_key_values"))
        drops = self.training and self.attention_dropout > 0
        if masked or drops or self.config._attn_implementation != "sdpa":
            theirs: tuple[Tensor, Any] = super().forward(hidden_states, position_embeddings, **others)
            return theirs
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        q, k, v = (f(hidden_states).view(shape) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (_Rotation.apply(tensor, *position_embeddings) for tensor in (q, k))
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        how: dict[str, Any] = {"is_causal": self.is_causal, "scale": self.scaling}
        mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.num_key_value_groups > 1, **how)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), None


def use_in(model: nn.Module) -> None:
    """Put them in place of transformers' own, which they differ from by `forward` alone."""
    own: dict[type[nn.Module], type[nn.Module]] = {
        LlamaRMSNorm: RMSNorm,
        LlamaMLP: GatedMLP,
        LlamaAttention: Attention,
    }
    for module in model.modules():
        module.__class__ = own.get(type(module), type(module))


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        result = torch.promote_types(x.dtype, weight.dtype)
        y = torch.empty_like(x, dtype=product_dtype(x.device, result), memory_format=torch.contiguous_format)
        scale = torch.empty(*x.shape[:-1], 1, dtype=wide, device=x.device)
        for part, of_y, of_scale in _parts(x, y, scale):
            h = part.to(wide)
            of_scale.copy_(torch.rsqrt(h.square().mean(-1, keepdim=True).add_(eps)))
            of_y.copy_(weight * (h * of_scale).to(x.dtype))
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        dw = torch.zeros_like(weight, dtype=scale.dtype)
        for part, of_scale, of_y, of_x in _parts(x, scale, dy, dx):
            h, g = part.to(scale.dtype) * of_scale, of_y.to(scale.dtype)
            dw += (g * h).sum(0)
            g = g * weight
            of_x.copy_(g.sub_(h.mul_((g * h).mean(-1, keepdim=True))).mul_(of_scale))
        return dx, dw.to(weight.dtype), None


class _Rotation(torch.autograd.Function):
    """Rotary embedding of queries or keys (n, length, heads, dim) by cos and sin (1 or n, length, dim)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, product_dtype(x.device, torch.promote_types(x.dtype, cos.dtype)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(dy, cos, -sin, dy.dtype), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
    """(x₁, x₂) ↦ (x₁cos − x₂sin, x₂cos + x₁sin), where x₁ and x₂ are the halves of a head."""
    y, half = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format), x.shape[-1] // 2
    cos, sin = (angle.unsqueeze(2).expand(len(x), -1, -1, -1)[..., :half] for angle in (cos, sin))
    several = rows_at_once(x[0].numel(), x.device.type)  # whole sequences
    for part, of_y, c, s in zip(*(tensor.split(several) for tensor in (x, y, cos, sin)), strict=True):
        first, second = part[..., :half], part[..., half:]
        of_y[..., :half] = first * c - second * s
        of_y[..., half:] = second * c + first * s
    return y


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        y = torch.empty_like(gate, memory_format=torch.contiguous_format)
        for of_gate, of_up, of_y in _parts(gate, up, y):
            torch.mul(F.silu(of_gate), of_up, out=of_y)
        ctx.save_for_backward(gate, up)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        d_gate, d_up = (torch.empty_like(gate, memory_format=torch.contiguous_format) for _ in range(2))
        for of_gate, of_up, of_y, of_d_gate, of_d_up in _parts(gate, up, dy, d_gate, d_up):
            torch.mul(of_y, F.silu(of_gate), out=of_d_up)
            of_d_gate.copy_(torch.ops.aten.silu_backward(of_y * of_up, of_gate))
        return d_gate, d_up


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of several tensors (…, width), a few at a time; the last ones are written to."""
    flat = tuple(tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors)
    several = rows_at_once(flat[0].shape[1], flat[0].device.type)
    if len(flat[0]) <= several:
        return iter([flat])
    return zip(*(tensor.split(several) for tensor in flat), strict=True)
