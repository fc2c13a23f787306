"""A grid of runs: base settings, named rows that differ from them, seeds. Each row × seed is a cell, one run.

seeds = [0, 1]
[base.model]
size = "demo"
[rows.full]
method.name = "full"
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from relora_lab import config
from relora_lab.errors import BadInput, require
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig


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
        return grid.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        near = difflib.get_close_matches(name, shipped, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"a TOML file, or one of {', '.join(sorted(shipped))}"
        raise BadInput(f"{grid}: cannot be read ({reason}); {hint}") from None


def cells(text: str, seeds: Sequence[int] = ()) -> dict[str, RunConfig]:
    """The runs a grid declares, by name (row-seed); `seeds` in place of its own.

    Raises BadInput, naming the row, before anything runs.
    """
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the grid is not valid TOML: {error}") from None
    unknown = set(table) - {"seeds", "base", "rows"}
    require(not unknown, f"unknown field '{min(unknown, default='')}'; a grid has seeds, base and rows")
    base, rows, seeds = table.get("base", {}), table.get("rows", {}), seeds or table.get("seeds", [0])
    _check(base, rows, seeds)
    found: dict[str, RunConfig] = {}
    for seed in seeds:
        for row, changes in rows.items():
            name = f"{row}-seed{seed}"
            merged = _merge(base, changes, {"name": name, "training": {"seed": seed}})
            try:
                found[name] = config.parse(merged)
            except BadInput as error:
                raise BadInput(f"rows.{row}: {error}") from None
    return found


def _check(base: Any, rows: Any, seeds: Any) -> None:
    tables = {"base": base, "rows": rows}
    tables |= {f"rows.{name}": row for name, row in rows.items()} if isinstance(rows, dict) else {}
    for name, table in tables.items():
        require(isinstance(table, dict), f"{name}: is a table; write [{name}]")
    numbers = isinstance(seeds, list | tuple) and all(type(seed) is int for seed in seeds)
    require(numbers, "seeds: must be a list of whole numbers, like [0, 1, 2]")
    require(bool(rows and seeds), "the grid is empty: it needs [rows.NAME] and seeds")
    require(len(set(seeds)) == len(seeds), f"seeds: {max(seeds, key=seeds.count)} is there twice")


def summary(runs: Iterable[RunFolder]) -> str:
    """A table of what runs have reached, as text."""
    runs = list(runs)
    width = max(20, *(len(run.path.name) for run in runs))
    lines = [f"{'run':<{width}} {'trained':>11} {'perplexity':>11} {'loss':>8} {'step':>7}  state"]
    for run in runs:
        trained, final = run.environment.get("parameters", {}).get("trained"), run.final_evaluation or {}
        perplexity, loss = _number(final.get("perplexity"), ".3f"), _number(final.get("loss"), ".4f")
        reached = f"{_number(trained, ','):>11} {perplexity:>11} {loss:>8} {_number(run.status.get('step'), 'd'):>7}"
        reason = f": {run.status['reason']}" if run.status.get("reason") else ""
        lines.append(f"{run.path.name:<{width}} {reached}  {run.state}{reason}")
    return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _merge(*tables: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables laid over each other, the later ones on top."""
    merged: dict[str, Any] = {}
    for table in tables:
        for name, value in table.items():
            under = merged.get(name)
            merged[name] = _merge(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged
