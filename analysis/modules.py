"""Tables and figures are files of a folder: those of a package of ours, or one's own (`report --with FOLDER`)."""

import importlib
import pkgutil
import sys
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from relora_lab.errors import BadInput, one_line, require

FIGURE = ("data", "draw", "describe", "SIZE")


def of_package(package: ModuleType) -> list[ModuleType]:
    """The modules of a package, by their ORDER, those without one last; files that begin with _ are helpers."""
    found = [file.name for file in pkgutil.iter_modules(package.__path__) if not file.ispkg]
    names = [name for name in found if not name.startswith("_")]
    for name in names:
        require(name.isidentifier(), f"{name}.py: its name becomes those of files; use letters, digits and _")
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    return sorted(modules, key=order_of)


def of_folder(folder: str | Path) -> list[ModuleType]:
    """The tables and figures in a folder of Python files, which are run; read anew each time.

    A table has `table(runs)`; a figure `data(runs)`, `draw(frame, ax)`, `describe(frame)` and SIZE (inches).
    Raises BadInput, naming the file, where one is neither or fails.
    """
    folder = Path(folder).resolve()
    require(folder.is_dir(), f"--with: {folder} is no folder; give one of Python files, each a table or a figure")
    package = ModuleType(f"own_{sha256(str(folder).encode()).hexdigest()[:8]}")
    package.__path__ = [str(folder)]
    for name in [name for name in sys.modules if name.partition(".")[0] == package.__name__]:
        del sys.modules[name]
    sys.modules[package.__name__] = package
    importlib.invalidate_caches()
    try:
        modules = of_package(package)
    except (Exception, SystemExit) as error:
        raise BadInput(f"--with: {folder}: {type(error).__name__}: {one_line(error)}") from error
    require(bool(modules), f"--with: {folder} has no Python files; each would be a table or a figure")
    for module in modules:
        missing = [name for name in FIGURE if not hasattr(module, name)]
        require(
            is_table(module) or not missing,
            f"--with: {module.__file__} is neither a table (it has no `table`) nor a figure (it lacks "
            f"{', '.join(f'`{name}`' for name in missing)}); helpers are files whose names begin with _",
        )
    return modules


def order_of(module: ModuleType) -> tuple[float, str]:
    """By what modules are sorted."""
    return getattr(module, "ORDER", float("inf")), name_of(module)


def is_table(module: ModuleType) -> bool:
    """Is it a table (or a figure)?"""
    return hasattr(module, "table")


def is_ours(module: ModuleType) -> bool:
    """Is it one of the lab's own?"""
    return module.__name__.startswith("analysis.")


def name_of(module: ModuleType) -> str:
    """The file's name, without its folder and suffix."""
    return module.__name__.rpartition(".")[2]
