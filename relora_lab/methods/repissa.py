"""RePiSSA (P2 §4.1): each cycle trains the r largest singular directions of W (PiSSA, Meng et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from relora_lab.methods import relora

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class Options(relora.Options):
    """As ReLoRA's."""

    base: Literal["random"] = "random"

    def split(self, W: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """B = U√(S/s), A = √(S/s)Vᵀ of the r largest singular values."""
        import torch

        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        root = (S[: self.rank] / self.scale).sqrt()
        return U[:, : self.rank] * root, root[:, None] * Vh[: self.rank]
