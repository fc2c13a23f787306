"""How far the runs in a folder are, from what lies on disk: whoever trains them, on whatever machine."""

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relora_lab import config, stages
from relora_lab.errors import printable, require
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig
from relora_lab.workspace import read_grid, write_grid

FEW = 48  # cells that are all listed
SHOWN = ("failed", "diverged", "killed", "stopped", "running")


def declare(cells: Mapping[str, RunConfig], plan: Mapping[str, stages.Stage], out: Path) -> None:
    """Write down, for `status`, that these cells are to be trained in `out`.

    Raises BadInput, with old and new, if a cell that has begun has other settings: before anything runs.
    """
    RunFolder(out).make()
    known, begins = read_grid(out), stages.by_cell(plan)
    facts: dict[str, Any] = {}
    for name, settings in cells.items():
        start = max((plan[key].cuts[-1] for key in begins.get(name, [])), default=0)
        facts[name] = {"digest": config.digest(settings), "steps": settings.training.steps, "start": start}
        if known.get(name, {}).get("digest") != facts[name]["digest"]:
            RunFolder(out / name).require_same(settings)
    write_grid(out, facts)


@dataclass(frozen=True)
class Cell:
    """A run and what it has reached; `state` is also "killed", of one that says it runs and no process holds."""

    name: str
    state: str
    step: int
    steps: int
    start: int  # the step up to which it is shared with others
    perplexity: float | None
    seconds_per_update: float | None
    reason: str

    @property
    def left(self) -> int:
        """Updates that are still to be made."""
        return 0 if self.state in ("finished", "diverged") else self.steps - max(self.step, self.start)


def of_folder(out: Path) -> list[Cell]:
    """The cells of the grid in `out`, in its order, and other runs there. Raises BadInput if there are none."""
    require(out.is_dir(), f"{out}: no such folder")
    grid = read_grid(out)
    folders = [path.name for path in sorted(out.iterdir()) if path.name not in grid]
    others = [name for name in folders if not name.startswith(".") and RunFolder(out / name).started]
    names = [*grid, *others]
    require(bool(names), f"{out}: holds neither a grid nor a run folder (a run folder has a config.toml)")
    return [_cell(out, name, grid.get(name, {})) for name in names]


def _cell(out: Path, name: str, declared: Mapping[str, Any]) -> Cell:
    run = RunFolder(out / name)
    status = run.status
    state = str(status.get("state", "waiting"))
    if state == "running" and not run.held:
        state = "killed"
    return Cell(
        name,
        state,
        int(status.get("step", 0)),
        int(declared.get("steps") or status.get("steps", 0)),
        int(declared.get("start", 0)),
        status.get("perplexity"),
        status.get("seconds_per_update"),
        printable(str(status.get("reason", ""))),
    )


def seconds_left(cells: Iterable[Cell]) -> float | None:
    """How long the running processes will take for all that is left, at the pace so far; None while none is known.

    A cell that has not begun is taken to go at the mean pace of the others.
    """
    cells = list(cells)
    paces = [cell.seconds_per_update for cell in cells if cell.seconds_per_update]
    running = sum(cell.state == "running" for cell in cells)
    if not paces or not running:
        return None
    mean = math.fsum(paces) / len(paces)
    return math.fsum(cell.left * (cell.seconds_per_update or mean) for cell in cells) / running


def as_text(cells: list[Cell], *, every: bool = False) -> str:
    """Counts and time left, and a line a cell: of many those that run or did not finish, or `every` one."""
    counts = Counter(cell.state for cell in cells)
    told = ", ".join(f"{count:,} {state}" for state, count in counts.most_common())
    left = seconds_left(cells)
    done = 1 - sum(cell.left for cell in cells) / max(1, sum(cell.steps - cell.start for cell in cells))
    ahead = f", about {duration(left)} left" if left is not None else ""
    head = f"{len(cells):,} cells: {told}. {100 * done:.0f} % of the updates are done{ahead}."
    shown = cells if every or len(cells) <= FEW else [cell for cell in cells if cell.state in SHOWN]
    return "\n".join([head, "", *_lines(shown)] if shown else [head])


def _lines(cells: list[Cell]) -> Iterator[str]:
    width = max(len("cell"), *(len(cell.name) for cell in cells))
    yield f"{'cell':<{width}}  {'state':<9} {'step':>15} {'perplexity':>11} {'left':>9}"
    for cell in cells:
        step = f"{cell.step:,}/{cell.steps:,}"
        perplexity = "–" if cell.perplexity is None else f"{cell.perplexity:.3f}"
        pace = cell.seconds_per_update
        left = duration(cell.left * pace) if pace and cell.state == "running" else "–"
        yield f"{cell.name:<{width}}  {cell.state:<9} {step:>15} {perplexity:>11} {left:>9}  {cell.reason}".rstrip()


def duration(seconds: float) -> str:
    """Seconds as people say them: "40 s", "12 min", "3 h 05 min", "2 d 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440:,} d {minutes % 1440 // 60} h"


def watch(out: Path, *, every: bool = False, seconds: float = 2.0) -> None:
    """Show `as_text` on the terminal, renewed until nothing is left to do."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(), auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            cells = of_folder(out)
            live.update(Text(as_text(cells, every=every)), refresh=True)
            if all(cell.state in ("finished", "diverged", "failed") for cell in cells):
                return
            time.sleep(seconds)


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
