"""Libraries that come with an extra: needed by some, installed by those."""

from importlib import import_module
from types import ModuleType

from relora_lab.errors import BadInput, one_line


def library(module: str, extra: str, wanted_by: str) -> ModuleType:
    """Import `module`. Raises BadInput, with what wants it and the pip line, where it cannot be imported."""
    try:
        return import_module(module)
    except ImportError as error:
        needed = module.partition(".")[0]
        broken = "" if (error.name or "").partition(".")[0] == needed else f" ({one_line(error)})"
        raise BadInput(f"{wanted_by}: needs {needed}{broken}; pip install 'relora-lab[{extra}]'") from None
