"""Low-rank factorisation from scratch: y = s·x·Aᵀ·Bᵀ, W = 0 for ever. P1's "LoRA" baseline (34.17 at 130M)."""

from dataclasses import dataclass
from typing import Literal

from relora_lab.methods import _options


@dataclass(frozen=True, kw_only=True)
class Options(_options.LowRankOptions):
    """As LoRA on a base of zero; A and B both start random, for with B = 0 nothing would ever train."""

    base: Literal["zero"] = "zero"
