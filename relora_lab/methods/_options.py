"""What the trainer asks of a method's options, at full rank and at low rank.

Settings and memory plans read these before torch is there, so torch is imported where it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from relora_lab import sizes
from relora_lab.errors import BadInput, require

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn
    from torch.optim import Optimizer

    from relora_lab.lowrank import LowRankLinear
    from relora_lab.settings import Optimizer as Settings

MOST = 1e6  # of a learning rate or a scale: far beyond what trains, far within what float32 multiplies
LEAST_EPS = 2.0**-126  # in float32 a smaller one loses digits, or is 0 and a weight without a gradient becomes 0/0

ResetMode = Literal["none", "zero", "magnitude", "random"]
ResetMask = Literal["shared", "separate"]
ResetParams = Literal["AB", "A"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """A method that trains every weight. Its hooks, with what AdamW at full rank does."""

    def optimizer(self, model: nn.Module, settings: Settings) -> Optimizer:
        """The optimizer of all that `model` trains."""
        import torch

        from relora_lab.optim.adamw import AdamW
        from relora_lab.precision import torch_dtype

        trained = [p for p in model.parameters() if p.requires_grad]
        dtype = torch_dtype(settings.state_dtype)
        if all(p.dtype == dtype for p in trained):
            return torch.optim.AdamW(trained, settings.lr, settings.betas, settings.eps, weight_decay=0.0, fused=True)
        return AdamW(trained, settings.lr, betas=settings.betas, eps=settings.eps, state_dtype=dtype)

    def trained(self, size: sizes.Size, vocab_size: int) -> int:
        """How many weights are trained."""
        return sizes.count_parameters(size, vocab_size=vocab_size)[1]

    def optimizer_entries(self, size: sizes.Size, vocab_size: int) -> int:
        """How many numbers the optimizer keeps: two moments a trained weight."""
        return 2 * self.trained(size, vocab_size)

    def warnings(self) -> list[str]:
        """What is allowed but seldom meant, a line each."""
        return []


@dataclass(frozen=True, kw_only=True)
class LowRankOptions(Options):
    """A method that trains factors B, A beside frozen matrices W, and what happens every `restart_every` updates.

    `alpha` defaults to the rank (scale alpha / rank = 1). `base` is what W starts from without a warm start:
    the random initialisation, or zero (the public code of P1's first version). `quantise` holds W as int8 or nf4
    codes between restarts. Restarts (merge and re-initialise) belong to the method; optimizer reset and jagged
    schedule are free in each.
    """

    rank: int
    alpha: float | None = None
    base: Literal["random", "zero"] = "random"
    quantise: Literal["int8", "nf4"] | None = None
    restart_every: int | None = None
    restart_warmup: int = 100
    jagged: bool = False
    optimizer_reset: ResetMode = "none"
    reset_ratio: float = 0.99
    reset_mask: ResetMask = "shared"
    reset_params: ResetParams = "AB"

    merges: ClassVar[bool] = False  # does a restart merge B and A into W and make new ones?
    rescales: ClassVar[bool] = False  # is W + s·B·A scaled, so that its change is no sum of factor pairs?

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"method.rank: must be ≥ 1 (got {self.rank})")
        alpha = self.alpha
        require(alpha is None or 0 < alpha < float("inf"), f"method.alpha: must be > 0 (got {alpha})")
        require(
            alpha is None or 1 / MOST <= alpha <= MOST,
            f"method.alpha: must be in [{1 / MOST:g}, {MOST:g}] (got {alpha})",
        )
        if not 0 <= self.reset_ratio < 1:
            hint = f"; did you mean {self.reset_ratio / 100:g}?" if 10 <= self.reset_ratio < 100 else ""
            hint = "; to reset all use method.optimizer_reset = 'zero'" if self.reset_ratio in (1, 100) else hint
            raise BadInput(f"method.reset_ratio: must be in [0, 1) (got {self.reset_ratio:g}{hint})")
        require(
            self.reset_ratio > 0 or self.optimizer_reset != "random",
            "method.reset_ratio: 0 resets nothing; use method.optimizer_reset = 'none'",
        )
        require(self.restart_warmup >= 0, f"method.restart_warmup: must be ≥ 0 (got {self.restart_warmup})")
        if self.restart_every is None:
            acts = {"jagged": self.jagged, "optimizer_reset": self.optimizer_reset != "none"}
            for field, on in acts.items():
                require(not on, f"method.{field}: acts every restart_every updates; set method.restart_every")
            return
        require(
            self.restart_every >= 1,
            f"method.restart_every: must be ≥ 1 (got {self.restart_every}); to train without restarts "
            "use method.name = 'lora' and leave restart_every out",
        )
        require(
            self.restart_warmup < self.restart_every,
            f"method.restart_warmup: {self.restart_warmup} leaves no step at full rate in a cycle of "
            f"{self.restart_every} (restart_every)",
        )

    @property
    def keeps_function(self) -> bool:
        """Is W − s·B·A what is frozen, so that a new cycle leaves what the network computes as it was?"""
        return True

    def restarts_after(self, update: int) -> bool:
        """Do the toggles act after so many updates of the low-rank phase?"""
        return self.restart_every is not None and update % self.restart_every == 0

    def merges_after(self, update: int) -> bool:
        """Are B and A merged into W and made anew then?"""
        return self.merges and self.restarts_after(update)

    def split(self, W: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """How a cycle begins: B (out, r) and A (r, in) from the merged W in float32 or wider."""
        from relora_lab.lowrank import random_factors

        return random_factors(self.rank, W, generator)

    def layer(self, base: nn.Linear, generator: Generator | None = None) -> LowRankLinear:
        """The layer that takes the place of a linear map."""
        from relora_lab.lowrank import LowRankLinear
        from relora_lab.row_scaled import RowScaledLinear

        layer = (RowScaledLinear if self.rescales else LowRankLinear)(
            base,
            self.rank,
            self.alpha,
            split=self.split,
            whole=not self.keeps_function,
            quantise=self.quantise,
            generator=generator,
        )
        if self.base == "zero":
            layer.start_from_zero(generator)
        return layer

    @property
    def scale(self) -> float:
        """s = alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def trained(self, size: sizes.Size, vocab_size: int) -> int:
        """Embeddings, head, norms, the factors of every wrapped matrix, and a magnitude a row if it rescales."""
        rows = sum(matrix.rows for matrix in sizes.matrices(size)) if self.rescales else 0
        return sizes.count_parameters(size, rank=self.rank, vocab_size=vocab_size)[1] + rows
