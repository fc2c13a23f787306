"""Adam-mini (Zhang et al. 2024): AdamW with one second moment a block of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from relora_lab import sizes
from relora_lab.methods import _options

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from relora_lab.settings import Optimizer as Settings


@dataclass(frozen=True, kw_only=True)
class Options(_options.Options):
    """`partition` is how weights are grouped: as in the version that P2 used, or as in v1.1 of the public code."""

    partition: Literal["paper", "v1.1"] = "paper"

    def optimizer(self, model: nn.Module, settings: Settings) -> Optimizer:
        """Adam-mini on the partition."""
        from relora_lab.optim.adam_mini import AdamMini, blocks
        from relora_lab.precision import torch_dtype

        return AdamMini(
            blocks(model, self.partition),
            settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            state_dtype=torch_dtype(settings.state_dtype),
        )

    def optimizer_entries(self, size: sizes.Size, vocab_size: int) -> int:
        """A first moment a weight and a second moment a block."""
        ends = 2 * vocab_size * (size.hidden if self.partition == "paper" else 1)
        norms = 2 * size.layers + 1
        by_row = self.partition == "v1.1"
        blocks = (size.heads if m.role in "qk" else m.rows if by_row else 1 for m in sizes.matrices(size))
        return self.trained(size, vocab_size) + ends + norms + sum(blocks)
