"""One file a method. Its `Options` are the fields of the TOML table [method]; `name` is the file's name."""

import difflib
import importlib
import pkgutil

from relora_lab.errors import BadInput
from relora_lab.methods._options import Options


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
