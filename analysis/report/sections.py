"""The sections of a report: what every table and figure has to show of the runs."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from types import ModuleType

import pandas as pd
from tqdm import tqdm

from analysis import measures, paper, tables
from analysis.modules import is_ours, is_table, name_of
from analysis.report import drawing, provenance
from analysis.report.part import Part, Printed, Section, prefixed
from relora_lab.errors import BadInput, one_line

Draw = Callable[[ModuleType, pd.DataFrame], Future[drawing.Drawing]]
MANY = 50  # runs, from which on a second process is worth its start
NOTHING = "Nothing to show: none of these runs has come that far."


def sections_of(
    runs: pd.DataFrame, sizes: Mapping[str, pd.DataFrame], modules: Sequence[ModuleType], *, progress: bool
) -> list[Section]:
    """A section a size (or task), between what is about all of them together and how each run was made."""
    across = [module for module in modules if getattr(module, "ACROSS_SIZES", False)]
    within = [module for module in modules if module not in across]
    total = len(across) + len(sizes) * len(within)
    with tqdm(total=total, desc="report", unit="part", disable=not progress) as bar, ExitStack() as stack:
        draw = stack.enter_context(drawing.Draughtsman()).draw if len(runs) >= MANY else drawing.now
        first = _section("", runs, across, draw, bar)
        sections = [first] if first.parts else []
        for size, mine in sizes.items():
            section = _section(size if len(sizes) > 1 else "", mine, within, draw, bar)
            sections.append(replace(section, parts=[*section.parts, provenance.differing(mine, section.title)]))
        for part in (part for section in sections for part in section.parts if part.drawing):
            part.drawn()  # or its error, before anything is written
    last = [provenance.made(runs), provenance.in_common(runs)]
    if len(sizes) == 1:
        return [*sections[:-1], replace(sections[-1], parts=[*sections[-1].parts, *last])]
    return [*sections, Section("All runs", last)]


def _section(size: str, runs: pd.DataFrame, modules: Sequence[ModuleType], draw: Draw, bar: tqdm) -> Section:
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
            parts.append(replace(part, name=prefixed(part.name, size)))
    return Section(size, parts, left_out)


def _part(module: ModuleType, runs: pd.DataFrame, draw: Draw) -> Part:
    """What a module has to show of the runs. Raises BadInput, naming the file, where one's own fails."""
    try:
        return _made(module, runs, draw) if is_ours(module) else _made(module, runs.copy(), drawing.now)
    except (Exception, SystemExit) as error:
        if is_ours(module):
            raise
        raise BadInput(f"--with: {module.__file__}: {type(error).__name__}: {one_line(error)}") from error


def _made(module: ModuleType, runs: pd.DataFrame, draw: Draw) -> Part:
    name = name_of(module)
    nothing = getattr(module, "NOTHING", NOTHING)
    if is_table(module):
        frame = module.table(runs)
        title = _title(module, frame)
        if frame.empty:
            return Part("tables", name, title, nothing, frame)
        note = _paragraph(module.note(frame) if hasattr(module, "note") else getattr(module, "NOTE", ""))
        fine_tuned = measures.of_runs(runs) is not measures.PERPLEXITY
        places = [place for place in getattr(module, "PRINTED", ()) if not fine_tuned or paper.of_fine_tuning(*place)]
        printed = [_printed(*place) for place in places]
        return Part("tables", name, title, note, frame, tables.shown(frame), printed=printed)
    frame = module.data(runs)
    title = _title(module, frame)
    if frame.empty:
        return Part("figures", name, title, nothing, frame)
    note = _paragraph(module.describe(frame))
    return Part("figures", name, title, note, frame, drawing=draw(module, frame))


def _title(module: ModuleType, frame: pd.DataFrame) -> str:
    """What a module's `title` says of these numbers, else its docstring's first line."""
    own = module.title(frame) if hasattr(module, "title") and not frame.empty else None
    return str(own or (module.__doc__ or name_of(module)).splitlines()[0].rstrip("."))


def _paragraph(text: object) -> str:
    return " ".join(str(text).split())


def _printed(of: str, name: str) -> Printed:
    flags = paper.flags().query("paper == @of and table == @name")
    told = [f"{row.row}, {row.column} ({row.text or 'empty'}): {row.flag}" for row in flags.itertuples()]
    shown = paper.table(of, name).rename_axis(columns=None, index="row").reset_index()
    return Printed(f"{of} {name}", paper.quantity(of, name), shown, told)
