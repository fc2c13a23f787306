"""One file a method. Its `Options` are the fields of the TOML table [method]; `name` is the file's name."""

import difflib
import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from relora_lab.errors import BadInput, require
from relora_lab.methods._options import LowRankOptions, Options

if TYPE_CHECKING:
    from torch import Generator, nn

    from relora_lab.lowrank import LowRankLinear


def available() -> list[str]:
    """Names of all methods: the files of this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def options_class(name: str) -> type[Options]:
    """The `Options` dataclass of a method. Raises BadInput with the nearest name."""
    if not isinstance(name, str) or name not in available():
        near = difflib.get_close_matches(str(name).lower(), available(), 1)
        hint = f"did you mean '{near[0]}'?" if near else f"one of {', '.join(available())}"
        raise BadInput(f"method.name: unknown method '{name}'; {hint}")
    cls: type[Options] = importlib.import_module(f"{__name__}.{name}").Options
    return cls


def name_of(options: Options | type[Options]) -> str:
    """The method's name: that of the file which defines its Options."""
    cls = options if isinstance(options, type) else type(options)
    return cls.__module__.rpartition(".")[2]


def low_rank_options(name: str, rank: int, alpha: float | None = None, **options: Any) -> LowRankOptions:
    """The Options of a method with low-rank layers, held to the rules of a settings file; restarts are the caller's.

    Raises BadInput, naming the field.
    """
    from relora_lab import config  # which reads every table of settings, and this package

    cls = options_class(name)
    require(issubclass(cls, LowRankOptions), f"method.name: {name} trains whole matrices; it has no low-rank layer")
    given = {"rank": rank, "alpha": alpha, "restart_every": 1, "restart_warmup": 0, **options}
    made: LowRankOptions = config.parse_table("method", cls, given)
    return made


def layer(
    name: str,
    base: "nn.Linear",
    rank: int,
    alpha: float | None = None,
    *,
    generator: "Generator | None" = None,
    **options: Any,
) -> "LowRankLinear":
    """The low-rank layer of a method in place of `base` (its weight is taken over, not copied).

    It has lora_A (r, in), lora_B (out, r), the frozen weight (out, in), magnitude (out,) where the method has one,
    merged_weight() and restart(generator). `options` are fields of the method's Options, `generator` a CPU generator
    (default: torch's own). Raises BadInput for a method without layers and for an option, ValueError for a rank
    that the matrix cannot have.
    """
    return low_rank_options(name, rank, alpha, **options).layer(base, generator)
