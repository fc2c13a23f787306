"""The low-rank layer, y = xWᵀ + b + s·xAᵀBᵀ with W frozen, and putting it into and taking it out of a model."""

import math
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relora_lab import seeds


class LowRankLinear(nn.Module):
    """A linear map W (out, in) with trained factors B (out, r) and A (r, in); scale s = alpha / r.

    It takes over the weight and bias of `base` (no copy) and freezes the weight. Factors have the weight's
    dtype and device. B starts at 0 and A ~ U(−1/√in, 1/√in), so the function is that of `base` (LoRA, and
    Kaiming with a = √5). `alpha` defaults to the rank. Raises ValueError for a rank the matrix cannot have.
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        alpha: float | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_rank(rank, base)
        out_features, in_features = base.weight.shape
        self.weight = base.weight.requires_grad_(False)
        self.bias = base.bias
        self.scale = (rank if alpha is None else alpha) / rank
        self.lora_A = nn.Parameter(self.weight.new_empty(rank, in_features))
        self.lora_B = nn.Parameter(self.weight.new_zeros(out_features, rank))
        self.initialise(generator)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw A, set B to 0. `generator` is a CPU generator (default: torch's own)."""
        _kaiming_(self.lora_A, generator)
        self.lora_B.zero_()

    @torch.no_grad()
    def start_from_zero(self, generator: torch.Generator | None = None) -> None:
        """Set W to 0 and draw A and B both: with W = B = 0 nothing would ever train (P1's first public code)."""
        self.weight.zero_()
        _kaiming_(self.lora_A, generator)
        _kaiming_(self.lora_B, generator)

    @torch.no_grad()
    def update(self) -> Tensor:
        """s·B·A (out, in), in float32 or wider."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        return self.lora_B.to(wide) @ self.lora_A.to(wide) * self.scale

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """W + s·B·A (out, in): summed in float32 or wider, in the weight's dtype."""
        update = self.update()
        return (self.weight.to(update.dtype) + update).to(self.weight.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """W ← W + s·B·A and B ← 0: the function stays."""
        self.weight.copy_(self.merged_weight())
        self.lora_B.zero_()

    @torch.no_grad()
    def restart(self, generator: torch.Generator | None = None) -> None:
        """Merge, and draw new factors: the function stays (P1 Algorithm 1, lines 15 and 16)."""
        self.merge()
        self.initialise(generator)

    def extra_repr(self) -> str:
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}, rank={self.lora_A.shape[0]}, scale={self.scale:g}"


def wrap(
    model: nn.Module,
    rank: int,
    alpha: float | None = None,
    *,
    seed: int = 0,
    exclude: Collection[str] = (),
) -> dict[str, LowRankLinear]:
    """Put a LowRankLinear in place of every nn.Linear of `model` but its output head and those in `exclude`.

    Returns the new layers by module name, in the model's order. Factors are a function of (seed, name).
    Everything else stays as trainable as it was. Raises ValueError, and leaves the model
    as it was, if there is nothing to wrap or a matrix is too small for the rank.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and name not in exclude
    ]
    if not found:
        raise ValueError("the model has no nn.Linear to wrap (wrapped already?)")
    for name, module in found:
        _check_rank(rank, module, f"{name}: ")
    layers = {}
    for name, module in found:
        layers[name] = LowRankLinear(module, rank, alpha, generator=seeds.generator(seed, "factors", 0, name))
        model.set_submodule(name, layers[name])
    return layers


def unwrap(model: nn.Module) -> None:
    """Put a plain nn.Linear with the merged, trainable weight back in place of every LowRankLinear."""
    for name, layer in low_rank_layers(model).items():
        out_features, in_features = layer.weight.shape
        linear = nn.Linear(in_features, out_features, device="meta")
        linear.weight = nn.Parameter(layer.merged_weight())
        linear.bias = layer.bias
        model.set_submodule(name, linear)


def low_rank_layers(model: nn.Module) -> dict[str, LowRankLinear]:
    """The model's LowRankLinear layers by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRankLinear)}


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the model as if it had never been wrapped, every W merged."""
    layers = low_rank_layers(model)
    factors = {f"{name}.{factor}" for name in layers for factor in ("lora_A", "lora_B")}
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in factors}
    return state | {f"{name}.weight": layer.merged_weight() for name, layer in layers.items()}


def _check_rank(rank: int, linear: nn.Linear, where: str = "") -> None:
    rows, cols = linear.weight.shape
    if not 1 <= rank <= min(rows, cols):
        raise ValueError(f"{where}rank {rank} does not fit a matrix of {rows}×{cols}")


def _kaiming_(factor: Tensor, generator: torch.Generator | None) -> None:
    bound = 1 / math.sqrt(factor.shape[1])
    drawn = torch.empty(factor.shape).uniform_(-bound, bound, generator=generator)
    factor.copy_(drawn)  # drawn on the CPU in float32: the same numbers on every device
