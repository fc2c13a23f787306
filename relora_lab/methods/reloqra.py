"""ReLoQRa (P2 §4.1): each cycle begins with factors from the QR decomposition of W."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from relora_lab.methods import relora

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class Options(relora.Options):
    """As ReLoRA's. "residual" freezes what Q and R leave of W, so that the function stays.

    "paper" leaves W whole, as P2's Equation 5 is written: the function jumps by s·B·A at every restart.
    """

    base: Literal["random"] = "random"
    qr_mode: Literal["residual", "paper"] = "residual"

    @property
    def keeps_function(self) -> bool:
        """Not in the paper's form."""
        return self.qr_mode == "residual"

    def split(self, W: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """B = Q[:, :r], A = R[:r] of Q, R = qr(W)."""
        import torch

        Q, R = torch.linalg.qr(W)
        return Q[:, : self.rank], R[: self.rank]

    def warnings(self) -> list[str]:
        """The paper's form with s ≥ 1 adds a whole copy of Q·R's first r rows at every restart."""
        if self.keeps_function or self.scale < 1:
            return []
        s = f"{self.scale:g}"
        return [
            f"method.qr_mode = 'paper' at scale {s} adds {s}·Q_r·R_r to W at every restart, which grows like "
            f"{1 + self.scale:g}^k; lower method.alpha, or use qr_mode = 'residual'"
        ]
