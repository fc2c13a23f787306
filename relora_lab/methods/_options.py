"""What the trainer asks of a method's options, at full rank and at low rank."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from relora_lab.errors import BadInput, require

ResetMode = Literal["none", "zero", "magnitude", "random"]
ResetMask = Literal["shared", "separate"]
ResetParams = Literal["AB", "A"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """A method that trains every weight."""


@dataclass(frozen=True, kw_only=True)
class LowRankOptions(Options):
    """A method that trains factors B, A beside frozen matrices W, and what happens every `restart_every` updates.

    `alpha` defaults to the rank (scale alpha / rank = 1). `base` is what W starts from without a warm start:
    the random initialisation, or zero (the public code of P1's first version). Restarts (merge and
    re-initialise) belong to the method; optimizer reset and jagged schedule are free in each.
    """

    rank: int
    alpha: float | None = None
    base: Literal["random", "zero"] = "random"
    restart_every: int | None = None
    restart_warmup: int = 100
    jagged: bool = False
    optimizer_reset: ResetMode = "none"
    reset_ratio: float = 0.99
    reset_mask: ResetMask = "shared"
    reset_params: ResetParams = "AB"

    merges: ClassVar[bool] = False  # does a restart merge B and A into W and draw new ones?

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"method.rank: must be ≥ 1 (got {self.rank})")
        alpha = self.alpha
        require(alpha is None or 0 < alpha < float("inf"), f"method.alpha: must be > 0 (got {alpha})")
        if not 0 <= self.reset_ratio < 1:
            percent = f"; did you mean {self.reset_ratio / 100:g}?" if 10 < self.reset_ratio < 100 else ""
            raise BadInput(f"method.reset_ratio: must be in [0, 1) (got {self.reset_ratio:g}{percent})")
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
