"""Libraries that come with an extra: needed by some, installed by those."""

from importlib import import_module
from types import ModuleType

from relora_lab.errors import BadInput


def library(module: str, extra: str, wanted_by: str) -> ModuleType:
    """Import `module`. Raises BadInput, with what wants it and the pip line, where it is not installed."""
    try:
        return import_module(module)
    except ImportError:
        needed = module.partition(".")[0]
        raise BadInput(f"{wanted_by}: needs {needed}; pip install 'relora-lab[{extra}]'") from None
