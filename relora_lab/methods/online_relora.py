"""Online ReLoRA (P1 §4, Table 5): B and A are merged far more often than the optimizer is reset."""

from dataclasses import dataclass

from relora_lab.errors import require
from relora_lab.methods import relora


@dataclass(frozen=True, kw_only=True)
class Options(relora.Options):
    """As ReLoRA's, and a merge every `merge_every` updates, at which the optimizer keeps its moments."""

    merge_every: int = 100

    def __post_init__(self) -> None:
        require(self.merge_every >= 1, f"method.merge_every: must be ≥ 1 (got {self.merge_every})")
        super().__post_init__()

    def merges_after(self, update: int) -> bool:
        """Every `merge_every` updates, and at each restart."""
        return update % self.merge_every == 0 or self.restarts_after(update)
