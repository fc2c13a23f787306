"""The report of a folder of runs: a page that works from disk, its text, and its tables and figures as files.

    out/report.html   figures, tables and their numbers in one file, nothing to fetch
    out/report.md     the same with links to
    out/report.tex    the same for LaTeX (booktabs), to be compiled in `out`
    out/figures/      NAME.png, NAME.pdf, NAME.svg, and every number drawn as NAME.csv
    out/tables/       NAME.csv (numbers), NAME.tex (booktabs)

Runs of several sizes, which saw as many tokens as suits each, get a section a size; so do
those of several tasks, which are no one table. Names of runs are foreign text:
they are escaped wherever they are shown.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from analysis import figures, modules, output, tables
from analysis.load import by_size_and_task, load_runs, require_comparable
from analysis.report import latex, markdown, page, provenance
from analysis.report.findings import about, findings
from analysis.report.part import Part, Section
from analysis.report.sections import sections_of
from relora_lab import files
from relora_lab.errors import require


def build(
    runs: pd.DataFrame | str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    own: str | Path | None = None,
    progress: bool = False,
) -> Path:
    """Write the report of `runs` (what load_runs gives or takes) into the folder `out`; returns its report.html.

    `own` is a folder of one's own tables and figures, Python files like those of analysis/tables and
    analysis/figures, which are run (analysis/modules.py). Raises BadInput, before anything is written, if runs of
    one section are not comparable, `out` cannot be written, or one of these files is no table or figure, or fails.
    """
    runs = runs if isinstance(runs, pd.DataFrame) else load_runs(runs)
    out = output.check(out)
    sizes = by_size_and_task(runs)
    for mine in sizes.values():
        require_comparable(mine)
    sections = sections_of(runs, sizes, _modules(own), progress=progress)
    for folder in ("figures", "tables"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    written = {path for section in sections for part in section.parts for path in _write(part, out)}
    _forget(written, out)
    told = about(sizes), findings(sections)
    files.write_text(out / "report.md", markdown.render(*told, sections))
    files.write_text(out / "report.tex", latex.render(*told, sections))
    files.write_text(out / "report.html", page.render(*told, sections))
    return out / "report.html"


def _modules(own: str | Path | None) -> list[modules.ModuleType]:
    """All tables, then all figures, each by their ORDER."""
    found = [*tables.available(), *figures.available()]
    taken = {(modules.is_table(module), modules.name_of(module)) for module in found}
    taken |= {(True, name) for name in provenance.NAMES}
    for module in modules.of_folder(own) if own is not None else ():
        name = modules.name_of(module)
        free = (modules.is_table(module), name) not in taken
        require(free, f"--with: {module.__file__}: the report has a {name} already; rename the file")
        found.append(module)
    return sorted(found, key=lambda module: (not modules.is_table(module), modules.order_of(module)))


def _write(part: Part, out: Path) -> Iterator[str]:
    """Write the numbers as CSV, the table as LaTeX, the figure as PNG, PDF and SVG; gives their places."""
    if part.frame.empty:
        return
    output.write_csv(out / part.file("csv"), part.frame)
    yield part.file("csv")
    if part.shown is not None:
        files.write_text(out / part.file("tex"), latex.table(part.shown))
        yield part.file("tex")
    for suffix, content in part.drawn().files.items() if part.drawing else ():
        files.write_bytes(out / part.file(suffix), content)
        yield part.file(suffix)


def _forget(written: set[str], out: Path) -> None:
    """Remove what an earlier report wrote here and this one has not, and note what this one wrote."""
    noted = out / ".written"
    before = set(noted.read_text(encoding="utf-8").splitlines()) if noted.exists() else set()
    for name in before - written:
        if re.fullmatch(r"(figures|tables)/[^/]+\.(csv|tex|png|pdf|svg)", name):
            (out / name).unlink(missing_ok=True)
    files.write_text(noted, "".join(f"{name}\n" for name in sorted(written)))


__all__ = ["Part", "Section", "build"]
