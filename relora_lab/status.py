"""How far the runs in a folder are, from what lies on disk: whoever trains them, on whatever machine."""

import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from relora_lab import config, stages, tasks
from relora_lab.errors import BadInput, printable, require
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig
from relora_lab.workspace import check_place, read_grid, stages_trained, write_grid

FEW = 48  # cells that are all listed
SHOWN = ("running", "failed", "killed", "stopped", "diverged")
NUMBERS = ("perplexity", "score", "seconds_per_update")  # of a status
DONE = ("finished", "diverged", "failed")  # until the command is given again


def declare(cells: Mapping[str, RunConfig], plan: Mapping[str, stages.Stage], out: Path) -> None:
    """Write down, for `status`, that these cells are to be trained in `out`. Raises BadInput as `check`."""
    facts = check(cells, plan, out)
    RunFolder(out).make()
    write_grid(out, facts, sum(stage.updates for stage in plan.values()))


def check(cells: Mapping[str, RunConfig], plan: Mapping[str, stages.Stage], out: Path) -> dict[str, dict[str, Any]]:
    """What is written down of each cell.

    Raises BadInput, with old and new, if one that has begun has other settings, and if no grid can be in `out`.
    """
    check_place(out)
    known, begins = read_grid(out).get("cells", {}), stages.by_cell(plan)
    facts: dict[str, dict[str, Any]] = {}
    for name, settings in cells.items():
        start = max((plan[key].cuts[-1] for key in begins.get(name, [])), default=0)
        facts[name] = {"digest": config.digest(settings), "steps": settings.training.steps, "start": start}
        facts[name] |= {"task": settings.task.name} if settings.task else {}
        if known.get(name, {}).get("digest") != facts[name]["digest"]:
            RunFolder(out / name).require_same(settings)
    return facts


@dataclass(frozen=True)
class Cell:
    """A run and what it has reached; `state` is also "killed", of one that says it runs and no process holds, and
    "damaged", of one whose status cannot be read."""

    name: str
    state: str
    step: int
    steps: int
    start: int  # the step up to which it is shared with others
    measure: str  # "perplexity", or a metric of its task
    value: float | None  # of it, when finished
    seconds_per_update: float | None
    reason: str

    @property
    def ended(self) -> bool:
        """Is there a result?"""
        return self.state in ("finished", "diverged")

    @property
    def left(self) -> int:
        """Updates of its own that are still to be made."""
        return 0 if self.state in DONE else self.steps - max(self.step, self.start)


@dataclass(frozen=True)
class Status:
    """The cells of a folder, in the grid's order; of what they share, the updates left and the stages in training."""

    cells: list[Cell]
    shared_left: int
    stages_running: int

    @property
    def left(self) -> int:
        """Updates that are still to be made."""
        return self.shared_left + sum(cell.left for cell in self.cells)

    @property
    def seconds_left(self) -> float | None:
        """How long those who train now will take for all that is left, at the pace so far; None while it is unknown.

        What has not begun is taken to go at the mean pace of the others.
        """
        paces = [cell.seconds_per_update for cell in self.cells if cell.seconds_per_update]
        running = self.stages_running + sum(cell.state == "running" for cell in self.cells)
        if not paces or not running:
            return None
        mean = math.fsum(paces) / len(paces)
        own = math.fsum(cell.left * (cell.seconds_per_update or mean) for cell in self.cells)
        return (own + self.shared_left * mean) / running


def of_folder(out: Path) -> Status:
    """The grid in `out`, and other runs there. Raises BadInput if there is neither."""
    require(out.is_dir(), f"{out}: no such folder")
    grid = read_grid(out)
    declared = grid.get("cells", {})
    beside = sorted(name for name in os.listdir(out) if name not in declared and not name.startswith("."))
    names = [*declared, *(name for name in beside if RunFolder(out / name).started)]
    require(bool(names), f"{out}: holds neither a grid nor a run folder (a run folder has a config.toml)")
    made, running = stages_trained(out)
    cells = [_cell(out, name, declared.get(name, {})) for name in names]
    unneeded = all(cell.state in DONE for cell in cells)
    shared_left = 0 if unneeded else max(0, grid.get("shared_updates", 0) - made)
    return Status(cells, shared_left, running)


def _cell(out: Path, name: str, declared: Mapping[str, Any]) -> Cell:
    run = RunFolder(out / name)
    try:
        status = _read(run)
    except BadInput as error:
        status = {"state": "damaged", "reason": str(error)}
    state = printable(str(status.get("state", "waiting")))
    if state == "running" and not run.held:
        state = "killed"
    task = tasks.TASKS.get(declared.get("task", ""))
    return Cell(
        name,
        state,
        int(status.get("step", 0)),
        int(declared.get("steps") or status.get("steps", 0)),
        int(declared.get("start", 0)),
        task.metrics[0] if task else "perplexity" if declared else _measure(run),
        status.get("score", status.get("perplexity")),
        status.get("seconds_per_update"),
        str(status.get("reason", "")),
    )


def _measure(run: RunFolder) -> str:
    """Of a run that no grid has declared."""
    try:
        return run.measure
    except BadInput:  # settings that cannot be read tell nothing
        return "perplexity"


def _read(run: RunFolder) -> dict[str, Any]:
    """A run's status. Raises BadInput where what should be a number is none."""
    status = run.status
    for name, kind in {"step": int, "steps": int, **dict.fromkeys(NUMBERS, int | float | None)}.items():
        require(isinstance(status.get(name, 0), kind), f"{run.path / 'status.json'}: is damaged ({name})")
    return status


def as_text(found: Status, *, every: bool = False) -> str:
    """Counts and time left, and a line a cell: of many those that run or did not finish, or `every` one."""
    cells = found.cells
    counts = Counter(cell.state for cell in cells)
    told = ", ".join(f"{count:,} {state}" for state, count in counts.most_common())
    seconds = found.seconds_left
    ahead = f", about {duration(seconds)} at this pace" if seconds is not None else ""
    shared = f"; stages in training: {found.stages_running}" if found.stages_running else ""
    head = f"{len(cells):,} cells: {told}.\n{found.left:,} updates left{ahead}{shared}."
    shown = cells if every or len(cells) <= FEW else [cell for cell in cells if cell.state in SHOWN]
    return "\n".join([head, "", *_lines(shown)] if shown else [head])


def _lines(cells: list[Cell]) -> Iterator[str]:
    width = max(len("cell"), *(len(cell.name) for cell in cells))
    head, values = _values([(cell.measure, cell.value) for cell in cells])
    wide = max(11, *map(len, [head, *values]))
    yield f"{'cell':<{width}}  {'state':<9} {'step':>15} {head:>{wide}} {'left':>9}"
    for cell, value in zip(cells, values, strict=True):
        step = f"{cell.step:,}/{cell.steps:,}"
        pace = cell.seconds_per_update
        left = duration(cell.left * pace) if pace and cell.state == "running" else "–"
        line = f"{cell.name:<{width}}  {cell.state:<9} {step:>15} {value:>{wide}} {left:>9}  {cell.reason}"
        yield printable(line.rstrip())


def _values(reached: Sequence[tuple[str, float | None]]) -> tuple[str, list[str]]:
    """The heading of a column of (measure, value), and its cells, which name the measure where there are several."""
    measures = {measure for measure, _ in reached}
    texts = [_number(value, ".3f") for _, value in reached]
    if len(measures) <= 1:
        return next(iter(measures), "perplexity"), texts
    told = zip(reached, texts, strict=True)
    return "reached", [text if value is None else f"{measure} {text}" for (measure, value), text in told]


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
    """Show `as_text` on the terminal, those that run first, renewed until nothing is left to do."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(), auto_refresh=False, vertical_overflow="ellipsis") as live:
        while True:
            found = of_folder(out)
            order = {state: number for number, state in enumerate(SHOWN)}
            cells = sorted(found.cells, key=lambda cell: order.get(cell.state, len(order)))
            text = as_text(replace(found, cells=cells), every=every)
            live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
            if all(cell.state in DONE for cell in cells):
                return
            time.sleep(seconds)


def summary(runs: Iterable[RunFolder]) -> str:
    """A table of what runs have reached, as text."""
    runs = list(runs)
    width = max([20, *(len(run.path.name) for run in runs)])
    finals = [run.final_evaluation or {} for run in runs]
    measures = [_measure(run) for run in runs]
    reached = [(measure, final.get(measure)) for measure, final in zip(measures, finals, strict=True)]
    head, values = _values(reached)
    wide = max(11, *map(len, [head, *values]))
    lines = [f"{'run':<{width}} {'trained':>11} {head:>{wide}} {'loss':>8} {'step':>7}  state"]
    for run, final, value in zip(runs, finals, values, strict=True):
        status = _read(run)
        trained = _number(run.environment.get("parameters", {}).get("trained"), ",")
        loss, step = _number(final.get("loss"), ".4f"), _number(status.get("step"), "d")
        reason = f": {status['reason']}" if status.get("reason") else ""
        told = f"{trained:>11} {value:>{wide}} {loss:>8} {step:>7}  {run.state}{reason}"
        lines.append(printable(f"{run.path.name:<{width}} {told}"))
    return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
