"""GaLore (Zhao et al. 2024; P2 §3, §4.2): Adam in a subspace of each gradient; error feedback, dynamic refreshes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from relora_lab import sizes
from relora_lab.errors import require
from relora_lab.methods import _options

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from relora_lab.settings import Optimizer as Settings


@dataclass(frozen=True, kw_only=True)
class Options(_options.Options):
    """The linear maps of the blocks through GaLore, with `eps`; everything else through AdamW with [optimizer]'s.

    The projector is refreshed every `gap` updates. `error_feedback` is the weight w of what the projection left
    of the last gradient (P2: 0.1 or 0.2; P2's gap 50, scale 1.0). With `dynamic` each refresh from update
    `dynamic_from` on makes the gap half as long again, up to `dynamic_max`.
    """

    rank: int
    gap: int = 200
    scale: float = 0.25
    side: Literal["std", "reverse_std", "left", "right"] = "std"
    sign: Literal["canonical", "lapack"] = "canonical"
    error_feedback: float = 0.0
    dynamic: bool = False
    dynamic_from: int = 200
    dynamic_max: int = 2500
    eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("rank", "gap", "dynamic_max"):
            require(getattr(self, name) >= 1, f"method.{name}: must be ≥ 1 (got {getattr(self, name)})")
        for name in ("scale", "eps"):
            value = getattr(self, name)
            require(0 < value < float("inf"), f"method.{name}: expected a positive number, got {value}")
            require(value <= _options.MOST, f"method.{name}: must be ≤ {_options.MOST:g} (got {value:g})")
        require(self.eps >= _options.LEAST_EPS, f"method.eps: must be ≥ {_options.LEAST_EPS:g} (got {self.eps:g})")
        require(
            0 <= self.error_feedback <= 1, f"method.error_feedback: must be in [0, 1] (got {self.error_feedback})"
        )
        require(
            not self.dynamic or self.dynamic_max >= self.gap,
            f"method.dynamic_max: must be ≥ method.gap, {self.gap} (got {self.dynamic_max})",
        )
        require(self.dynamic_from >= 0, f"method.dynamic_from: must be ≥ 0 (got {self.dynamic_from})")

    def optimizer(self, model: nn.Module, settings: Settings) -> Optimizer:
        """GaLore, with AdamW for what is no linear map of a block."""
        from relora_lab.lowrank import linear_maps
        from relora_lab.optim.galore import GaLore
        from relora_lab.precision import torch_dtype

        projected = [linear.weight for linear in linear_maps(model).values()]
        ours = {id(weight) for weight in projected}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in ours]
        groups: list[dict[str, Any]] = [{"params": projected}, {"params": rest, "rank": None, "eps": settings.eps}]
        return GaLore(
            groups,
            settings.lr,
            rank=self.rank,
            gap=self.gap,
            scale=self.scale,
            side=self.side,
            sign=self.sign,
            error_feedback=self.error_feedback,
            dynamic=self.dynamic,
            dynamic_from=self.dynamic_from,
            dynamic_max=self.dynamic_max,
            betas=settings.betas,
            eps=self.eps,
            state_dtype=torch_dtype(settings.state_dtype),
        )

    def optimizer_entries(self, size: sizes.Size, vocab_size: int) -> int:
        """Two moments in the subspace and error feedback's residual; AdamW's of the rest. Without projectors."""
        matrices = list(sizes.matrices(size))
        whole = sum(m.rows * m.cols for m in matrices)
        rest = self.trained(size, vocab_size) - whole
        moments = 2 * self.rank * sum(self._kept_side(m) for m in matrices)
        return moments + 2 * rest + (whole if self.error_feedback else 0)

    def projector_entries(self, size: sizes.Size) -> int:
        """How many numbers the projectors are."""
        return sum(self.rank * (m.rows + m.cols - self._kept_side(m)) for m in sizes.matrices(size))

    def _kept_side(self, matrix: sizes.Matrix) -> int:
        """The side of the gradient that the projection leaves whole."""
        rows, cols = matrix.rows, matrix.cols
        sides = {"std": max(rows, cols), "reverse_std": min(rows, cols), "right": rows, "left": cols}
        return sides[self.side]
