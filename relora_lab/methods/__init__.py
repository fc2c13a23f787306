"""One file a method. Its `Options` are the fields of the TOML table [method]; `name` is the file's name."""

import difflib
import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from relora_lab.errors import BadInput, require
from relora_lab.methods._options import LowRankOptions, Options

if TYPE_CHECKING:
    from torch import nn

    from relora_lab.lowrank import LowRankLinear


def available() -> list[str]:
    """Names of all methods: the files of this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def options_class(name: str) -> type[Options]:
    """The `Options` dataclass of a method. Raises BadInput with the nearest name."""
    if name not in available():
        near = difflib.get_close_matches(name, available(), 1)
        hint = f"did you mean '{near[0]}'?" if near else f"one of {', '.join(available())}"
        raise BadInput(f"method.name: unknown method '{name}'; {hint}")
    cls: type[Options] = importlib.import_module(f"{__name__}.{name}").Options
    return cls


def name_of(options: Options) -> str:
    """The method's name: that of the file which defines its Options."""
    return type(options).__module__.rpartition(".")[2]


def layer(name: str, base: "nn.Linear", rank: int, alpha: float | None = None, **options: Any) -> "LowRankLinear":
    """The low-rank layer of a method in place of `base` (its weight is taken over, not copied).

    It has lora_A (r, in), lora_B (out, r), the frozen weight (out, in), magnitude (out,) where the method has one,
    merged_weight() and restart(generator). `options` are fields of the method's Options. Raises BadInput for a
    method without layers, ValueError for a rank that the matrix cannot have.
    """
    cls = options_class(name)
    require(issubclass(cls, LowRankOptions), f"method.name: {name} trains whole matrices; it has no low-rank layer")
    # When to restart is up to who calls restart().
    made: Any = cls(**{"rank": rank, "alpha": alpha, "restart_every": 1, "restart_warmup": 0, **options})
    wrapped: LowRankLinear = made.layer(base)
    return wrapped
