"""What a report is made of: sections of tables and figures, each with its numbers and what is said of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Literal

import pandas as pd
from tqdm import tqdm

from analysis import paper, tables
from analysis.modules import is_ours, is_table, name_of
from analysis.report.drawing import Draughtsman, Drawing
from analysis.report.drawing import draw as drawing_here
from relora_lab.errors import BadInput, one_line
from relora_lab.runs import RunFolder

Draw = Callable[[ModuleType, pd.DataFrame], Future[Drawing]]
MANY = 50  # runs, from which on a second process is worth its start
ALWAYS = ("settings", "runs", "in_common")  # tables that every report has
NOTHING = "Nothing to show: none of these runs has come that far."
VERSIONS = ("relora_lab", "torch", "transformers", "python", "device", "cpu_capability", "threads", "git_commit")


@dataclass(frozen=True)
class Printed:
    """A table of a paper as it is printed: what it is, its text, and what contradicts single numbers."""

    title: str
    note: str
    shown: pd.DataFrame
    flags: Sequence[str]


@dataclass(frozen=True)
class Part:
    """A table (its text in `shown`) or a figure (`drawing`); neither where there is nothing to show."""

    kind: Literal["tables", "figures"]  # the folder of its files
    name: str
    title: str
    note: str
    frame: pd.DataFrame
    shown: pd.DataFrame | None = None
    drawing: Future[Drawing] | None = None
    printed: Sequence[Printed] = ()  # what the papers have of it

    def drawn(self) -> Drawing:
        """A figure's drawing; waits for it. Raises what went wrong with it."""
        assert self.drawing
        return self.drawing.result()

    def file(self, suffix: str) -> str:
        """Where one of its files lies, in the report's folder."""
        return f"{self.kind}/{self.name}.{suffix}"


@dataclass(frozen=True)
class Section:
    """Parts that belong together; `left_out` are titles of tables and figures that have nothing to show."""

    title: str  # a size, where there are several; else ""
    parts: Sequence[Part]
    left_out: Sequence[str] = ()


def sections_of(
    runs: pd.DataFrame, sizes: Mapping[str, pd.DataFrame], modules: Sequence[ModuleType], *, progress: bool
) -> list[Section]:
    """A section a size, between what is about all sizes together and how each run was made."""
    across = [module for module in modules if getattr(module, "ACROSS_SIZES", False)]
    within = [module for module in modules if module not in across]
    total = len(across) + len(sizes) * len(within)
    with tqdm(total=total, desc="report", unit="part", disable=not progress) as bar, ExitStack() as stack:
        draw = stack.enter_context(Draughtsman()).draw if len(runs) >= MANY else None
        first = _section("", runs, across, draw, bar)
        sections = [first] if first.parts else []
        for size, mine in sizes.items():
            section = _section(size if len(sizes) > 1 else "", mine, within, draw, bar)
            sections.append(replace(section, parts=[*section.parts, _differing(mine, section.title)]))
        for part in (part for section in sections for part in section.parts if part.drawing):
            part.drawn()  # or its error, before anything is written
    last = [_runs(runs), _in_common(runs)]
    if len(sizes) == 1:
        return [*sections[:-1], replace(sections[-1], parts=[*sections[-1].parts, *last])]
    return [*sections, Section("All runs", last)]


def _section(size: str, runs: pd.DataFrame, modules: Sequence[ModuleType], draw: Draw | None, bar: tqdm) -> Section:
    made = {}
    for module in sorted(modules, key=is_table):  # figures first: they can be drawn meanwhile
        made[module] = _part(module, runs, draw)
        bar.update()
    parts, left_out = [], []
    for module in modules:
        part = made[module]
        if part.frame.empty and getattr(module, "OPTIONAL", False):
            left_out.append(part.title)
        else:
            parts.append(replace(part, name=_prefixed(part.name, size)))
    return Section(size, parts, left_out)


def _prefixed(name: str, size: str) -> str:
    return f"{size}-{name}" if size else name


def _part(module: ModuleType, runs: pd.DataFrame, draw: Draw | None) -> Part:
    """What a module has to show of the runs. Raises BadInput, naming the file, where one's own fails."""
    try:
        return _made(module, runs, draw) if is_ours(module) else _made(module, runs.copy(), None)
    except (Exception, SystemExit) as error:
        if is_ours(module):
            raise
        raise BadInput(f"--with: {module.__file__}: {type(error).__name__}: {one_line(error)}") from error


def _made(module: ModuleType, runs: pd.DataFrame, draw: Draw | None) -> Part:
    name = name_of(module)
    title = (module.__doc__ or name).splitlines()[0].rstrip(".")
    nothing = getattr(module, "NOTHING", NOTHING)
    if is_table(module):
        frame = module.table(runs)
        if frame.empty:
            return Part("tables", name, title, nothing, frame)
        note = str(module.note(frame) if hasattr(module, "note") else getattr(module, "NOTE", ""))
        printed = [_printed(*place) for place in getattr(module, "PRINTED", ())]
        return Part("tables", name, title, note, frame, tables.shown(frame), printed=printed)
    frame = module.data(runs)
    if frame.empty:
        return Part("figures", name, title, nothing, frame)
    drawing = draw(module, frame) if draw else _now(module, frame)
    return Part("figures", name, title, str(module.describe(frame)), frame, drawing=drawing)


def _now(module: ModuleType, frame: pd.DataFrame) -> Future[Drawing]:
    """The figure drawn here."""
    drawing: Future[Drawing] = Future()
    drawing.set_result(drawing_here(module, frame))
    return drawing


def _printed(of: str, name: str) -> Printed:
    flags = paper.flags().query("paper == @of and table == @name")
    told = [f"{row.row}, {row.column} ({row.text or 'empty'}): {row.flag}" for row in flags.itertuples()]
    shown = paper.table(of, name).rename_axis(columns=None, index="row").reset_index()
    return Printed(f"{of} {name}", paper.quantity(of, name), shown, told)


# ---- settings and environment


def _differing(runs: pd.DataFrame, size: str) -> Part:
    """The settings in which the runs differ, a row a run."""
    differing = [name for name in _settings(runs) if runs[name].nunique(dropna=False) > 1]
    frame = runs[["run", *differing]].convert_dtypes().rename(columns=lambda name: str(name).replace("_", " "))
    floats = frame.select_dtypes("Float64").columns
    shown = _text(frame.assign(**{name: frame[name].map("{:g}".format, na_action="ignore") for name in floats}))
    title = "What the runs differ by" + (f" ({size})" if size else "")
    note = "All other settings are the same."
    return Part("tables", _prefixed("settings", size), title, note, frame, shown)


def _in_common(runs: pd.DataFrame) -> Part:
    """Settings that all runs have, a row a setting."""
    same = [name for name in _settings(runs) if runs[name].nunique(dropna=False) == 1]
    values = runs[same].iloc[0].dropna()
    frame = pd.DataFrame({"setting": values.index, "value": values.map(str).to_numpy()})
    return Part("tables", "in_common", "What the runs have in common", "Settings of all runs.", frame, _text(frame))


def _runs(runs: pd.DataFrame) -> Part:
    """How each run ended and what it was made with; the numbers have every setting too."""
    frame = pd.DataFrame(_of_run(run) for _, run in runs.iterrows())
    shown = _text(frame[["run", "state", *VERSIONS, "folder"]])
    note = "Each folder holds its settings, logs and weights. The CSV has every setting of every run too."
    return Part("tables", "runs", "Runs", note, frame, shown)


def _of_run(run: pd.Series) -> dict[str, object]:
    state = f"{run['state']} at step {run['step']}" + (f": {run['reason']}" if isinstance(run["reason"], str) else "")
    about = {"run": run["run"], "state": state}
    made = {**dict.fromkeys(VERSIONS), **dict(_flat(RunFolder(run["path"]).environment))}
    made["git_commit"] = str(made["git_commit"])[:8] if made["git_commit"] else None
    # What is known of the run comes last: nothing that stands in a file of it takes its place.
    return about | made | dict(run[_settings(run.to_frame().T)]) | about | {"folder": run["path"]}


def _flat(table: Mapping[str, object], before: str = "") -> Iterator[tuple[str, object]]:
    """The values of nested tables, by names like corpus.tokenizer."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _settings(runs: pd.DataFrame) -> list[str]:
    return [name for name in runs.columns if "." in name]


def _text(frame: pd.DataFrame) -> pd.DataFrame | None:
    return None if frame.empty else tables.shown(frame)
