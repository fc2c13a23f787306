"""ReLoRA (P1 Algorithm 1): LoRA that every `restart_every` updates is merged into W and starts anew."""

from dataclasses import dataclass
from typing import ClassVar

from relora_lab import methods
from relora_lab.errors import require
from relora_lab.methods import _options


@dataclass(frozen=True, kw_only=True)
class Options(_options.LowRankOptions):
    """The paper's recipe by default: 99 % of the optimizer state pruned by magnitude, jagged schedule."""

    jagged: bool = True
    optimizer_reset: _options.ResetMode = "magnitude"

    merges: ClassVar[bool] = True

    def __post_init__(self) -> None:
        name = methods.name_of(self)
        require(
            self.restart_every is not None,
            f"method.restart_every: {name} needs it; to train without restarts use method.name = 'lora'",
        )
        super().__post_init__()
