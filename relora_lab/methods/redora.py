"""ReDoRA (P2 §4.1): DoRA (Liu et al. 2024) that is merged and restarted, W ← (m/n)(W + s·B·A)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from relora_lab.methods import relora


@dataclass(frozen=True, kw_only=True)
class Options(relora.Options):
    """As ReLoRA's. The magnitudes m begin each cycle as the row norms of W; their optimizer state goes on."""

    base: Literal["random"] = "random"

    rescales: ClassVar[bool] = True
