"""A grid of runs: rows of settings, and seeds. Each row × seed is a cell: one run, called ROW-seedN.

seeds = [0, 1]
[base.model]                           # what the rows have in common
size = "demo"
[base.method]                          # of these a row takes what its method has
rank = 2
[rows.full]                            # a row, laid over base
method.name = "full"
[axes]                                 # and a row for each combination: lora-scratch, lora-warm, relora-scratch, ...
method.name = ["lora", "relora"]       # a setting and its values
[axes.start]                           # or alternatives by name
scratch = {}
warm = { training.warm_start = 1000 }
[profiles.long]                        # the same parts again, for when this profile is asked for
seeds = [0]
base.training = { steps = 20000 }

What a profile names in base, axes or rows takes the place of the grid's as a whole: this [base.training] has no
setting of the other one.
"""

import difflib
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

from relora_lab import config, methods
from relora_lab.errors import BadInput, require
from relora_lab.settings import RunConfig

PARTS = ("seeds", "base", "axes", "rows")
SETTINGS = [part.name for part in fields(RunConfig) if part.name != "name"]  # the tables of a run


def read(grid: Path) -> str:
    """The text of a grid: of a TOML file, or of one that the package has by that name.

    Raises BadInput, with the nearest name, if it cannot be read.
    """
    found = files("experiments").joinpath("grids").iterdir()
    shipped = {path.name.removesuffix(".toml"): path for path in found if path.name.endswith(".toml")}
    name = str(grid)
    if name in shipped:
        return shipped[name].read_text(encoding="utf-8")
    try:
        return grid.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeError) else getattr(error, "strerror", None) or str(error)
        hint = _nearest(name, shipped, f"a TOML file, or one of {', '.join(sorted(shipped))}")
        raise BadInput(f"{grid}: cannot be read ({reason}); {hint}") from None


def profiles(text: str) -> list[str]:
    """The names of a grid's profiles. Raises BadInput for what is no grid."""
    return list(_parts(text).get("profiles", {}))


def cells(text: str, seeds: Sequence[int] = (), profile: str | None = None) -> dict[str, RunConfig]:
    """The runs a grid declares, by name, in one of its profiles if one is named; `seeds` in place of its own.

    Raises BadInput, naming the row, before anything runs.
    """
    grid = _parts(text)
    if profile is not None:
        grid = _in_profile(grid, profile)
    seeds = seeds or grid.get("seeds", [0])
    rows = _rows(grid.get("axes", {}), grid.get("rows", {}))
    require(bool(rows and seeds), "the grid is empty: it needs [rows.NAME] or [axes], and seeds")
    most, times = Counter(seeds).most_common(1)[0]
    require(times == 1, f"seeds: {most} is there twice")
    configs = _configs(grid.get("base", {}), rows)
    found: dict[str, RunConfig] = {}
    for seed in seeds:
        for row, settings in configs.items():
            name = f"{row}-seed{seed}"
            with _naming(row):
                found[name] = replace(settings, name=name, training=replace(settings.training, seed=seed))
    return found


def notes(cells: Mapping[str, RunConfig]) -> Iterator[str]:
    """What a grid may not mean, a line each: full runs that share nothing, and rows that are no one table."""
    longest = max((cell.training.warm_start for cell in cells.values()), default=0)
    apart = [name for name, cell in cells.items() if cell.method_name == "full" and cell.training.reference == 0]
    if longest and apart:
        yield (
            f"{apart[0]}: its ΔW counts from step 0, so it shares no beginning with the warm starts; with "
            f"training.reference_step = {longest} it would"
        )
    seen: dict[Any, dict[str, dict[str, Any]]] = {}  # by task: a report has a section for each
    for name, cell in cells.items():
        seen.setdefault(cell.task, {})[name] = {
            "training.steps": cell.training.steps,
            "tokens": cell.training.steps * cell.data.batch_size * cell.data.sequence_length,
            "data.corpus": (cell.data.dataset, cell.data.subset, cell.data.corpus),
            "data.tokenizer": (cell.data.tokenizer, cell.data.vocabulary),
        }
    for first, *others in map(dict.items, seen.values()):
        for name, facts in others:
            differing = [what for what, value in facts.items() if value != first[1][what]]
            if differing:
                yield f"{first[0]} and {name} differ in {differing[0]}, so no one table or report can have both"
                return


def _parts(text: str) -> dict[str, Any]:
    """The grid as TOML has it, if all its parts, and those of its profiles, are what they must be."""
    try:
        grid = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the grid is not valid TOML: {error}") from None
    _check_parts(grid, (*PARTS, "profiles"))
    for name, profile in _table("profiles", grid.get("profiles", {})).items():
        _check_parts(_table(f"profiles.{name}", profile), PARTS, f"profiles.{name}.")
    return grid


def _check_parts(grid: Mapping[str, Any], known: Sequence[str], where: str = "") -> None:
    for name in grid:
        hint = _nearest(name, known, f"there are {', '.join(known)}")
        require(name in known, f"unknown field '{where}{name}'; {hint}")
    seeds = grid.get("seeds", [])
    numbers = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
    require(numbers, f"{where}seeds: must be a list of whole numbers, like [0, 1, 2]")
    for name, table in _table(f"{where}base", grid.get("base", {})).items():
        require(name not in SETTINGS or isinstance(table, dict), f"{where}base.{name}: is a table of settings")
    for part in ("axes", "rows"):
        for name, table in _table(f"{where}{part}", grid.get(part, {})).items():
            for below in _table(f"{where}{part}.{name}", table):
                taken_apart = part == "rows" and below[:1].isdigit()  # by TOML: lr0.01
                require(not taken_apart, f'{where}rows.{name}: quote a name with a point: [rows."{name}.{below}"]')


def _table(name: str, value: Any) -> dict[str, Any]:
    require(isinstance(value, dict), f"{name}: is a table; write [{name}]")
    table: dict[str, Any] = value
    return table


def _in_profile(grid: dict[str, Any], name: str) -> dict[str, Any]:
    """The grid with the parts of one of its profiles laid over its own."""
    known = grid.get("profiles", {})
    has = f"the grid has {', '.join(known) or 'none'}"
    require(name in known, f"unknown profile '{name}'; {_nearest(name, known, has)}")
    tables = {part: grid.get(part, {}) | known[name].get(part, {}) for part in ("base", "axes", "rows")}
    return grid | known[name] | tables


def _rows(axes: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, Any]:
    """What each row changes, by name: the product of the axes, then the rows that are named."""
    combinations = product(*(axis.items() for axis in _axes(axes))) if axes else ()
    made = [("-".join(name for name, _ in parts), _merge(*(each for _, each in parts))) for parts in combinations]
    found: dict[str, Any] = {}
    for name, changes in [*made, *rows.items()]:
        require(name not in found, f"rows.{name}: two rows have this name")
        found[name] = changes
    return found


def _axes(axes: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every axis: what its alternatives change, by their part of a row's name."""
    for name, table in axes.items():
        require(bool(table), f"axes.{name}: is empty")
        if name in SETTINGS:
            yield from (_values(name, setting, values) for setting, values in table.items())
            continue
        for alternative, changes in table.items():
            hint = _nearest(name, SETTINGS, f"axes of values are of a setting, in {', '.join(SETTINGS)}")
            require(isinstance(changes, dict), f"axes.{name}.{alternative}: is a table of settings; {hint}")
        yield table


def _values(table: str, setting: str, values: Any) -> dict[str, Any]:
    """The axis of a setting: its alternatives are called rank4, lr0.001, jagged-true, and a text what it says."""
    where = f"axes.{table}.{setting}"
    require(isinstance(values, list) and bool(values), f"{where}: must be a list of values, and not an empty one")
    axis: dict[str, Any] = {}
    for value in values:
        part = {str: f"{value}", bool: f"{setting}-{value}".lower()}.get(type(value), f"{setting}{value}")
        plain = isinstance(value, str | int | float) and re.fullmatch(r"[A-Za-z0-9_.-]+", part)
        require(bool(plain), f"{where}: {value!r} makes no name of a run; use a named axis, [axes.NAME]")
        require(part not in axis, f"{where}: {value} is there twice")
        axis[part] = {table: {setting: value}}
    return axis


def _configs(base: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, RunConfig]:
    """Every row laid over base, as settings. Raises BadInput for two that are the same."""
    found: dict[str, RunConfig] = {}
    same: dict[str, str] = {}
    for row, table in _laid_over(base, rows).items():
        with _naming(row):
            settings = config.parse(table)
            given = settings.name is not None or settings.training.seed != 0
            require(not given, f"name and training.seed come from the grid: {row}-seedN")
        twin = same.setdefault(config.digest(settings), row)
        require(twin == row, f"rows.{twin} and rows.{row} are the same configuration")
        found[row] = settings
    return found


def _laid_over(base: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every row laid over base; of base.method it takes what its method has, and some row has to take it."""
    options = {name: {part.name for part in fields(methods.options_class(name))} for name in methods.available()}
    found = {row: _merge(base, changes) for row, changes in rows.items()}
    known: set[str] = set()
    for row, table in found.items():
        method = table.get("method")
        if isinstance(method, dict) and str(method.get("name")) in options:
            has = options[method["name"]] | {"name"}
            own = rows[row].get("method", {})
            table["method"] = {name: value for name, value in method.items() if name in has or name in own}
            known |= has
    for name in base.get("method", {}) if known else ():
        hint = _nearest(name, known, f"they have {', '.join(sorted(known))}")
        require(name in known, f"base.method.{name}: the method of no row has this field; {hint}")
    return found


@contextmanager
def _naming(row: str) -> Iterator[None]:
    try:
        yield
    except BadInput as error:
        raise BadInput(f"rows.{row}: {error}") from None


def _nearest(name: str, known: Iterable[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean '{near[0]}'?" if near else otherwise


def _merge(*tables: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables laid over each other, the later ones on top."""
    merged: dict[str, Any] = {}
    for table in tables:
        for name, value in table.items():
            under = merged.get(name)
            merged[name] = _merge(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged
