"""The report as one page for a browser: nothing to fetch, light and dark, its numbers in it as files to save."""

import base64
import gzip
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from analysis.output import as_csv
from analysis.report.latex import is_number
from analysis.report.part import Part, Printed, Section
from relora_lab.errors import printable

TITLE = "What rank did the updates have?"
LEADING = 10  # findings that are shown at once
CSS_PIXELS = 130  # an inch of a figure on the page
NARROW = 4.0  # inches
LETTERS = 700  # of what is said of a part at once
REFERENCE = re.compile(r'(\bid="|\bhref="#|url\(#)([^")]+)')  # of what an SVG defines


def render(about: str, findings: Sequence[str], sections: Sequence[Section]) -> str:
    """The whole page; every name in it is text, whatever it holds."""
    folder = files("analysis.report")
    environment = jinja2.Environment(
        autoescape=True, finalize=_text, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = environment.from_string(folder.joinpath("page.html").read_text(encoding="utf-8"))
    parts = [part for section in sections for part in section.parts]
    return page.render(
        title=TITLE,
        style=Markup(folder.joinpath("page.css").read_text(encoding="utf-8")),  # noqa: S704 (ours)
        script=Markup(folder.joinpath("page.js").read_text(encoding="utf-8")),  # noqa: S704
        about=about,
        findings=findings[:LEADING],
        more=findings[LEADING:],
        sections=[_section(section) for section in sections],
        numbers={part.file("csv"): _packed(as_csv(part.frame)) for part in parts if not part.frame.empty},
    )


def _text(value: Any) -> Any:
    """What the page shows; text that is not its own without signs that turn letters round, or are not seen."""
    return printable(value) if type(value) is str else value


def _section(section: Section) -> dict[str, Any]:
    return {"title": section.title, "parts": [_part(p) for p in section.parts], "left_out": section.left_out}


def _part(part: Part) -> dict[str, Any]:
    note, more = _shortened(part.note)
    about: dict[str, Any] = {"id": f"{part.kind}-{part.name}", "title": part.title, "note": note, "more": more}
    about |= {"csv": "" if part.frame.empty else part.file("csv"), "svg": "", "columns": [], "printed": []}
    if part.drawing:
        drawing = part.drawn()
        narrow = drawing.width < NARROW  # it stays legible on a phone; a wider one is pushed aside there
        svg = _inline(drawing.files["svg"].decode(), part)
        return about | {"svg": svg, "width": round(drawing.width * CSS_PIXELS), "narrow": narrow}
    if part.shown is None:
        return about
    return about | _table(part.shown) | {"printed": [_printed(printed) for printed in part.printed]}


def _table(shown: pd.DataFrame) -> dict[str, Any]:
    columns = [{"name": name, "kind": _kind(str(name), shown[name])} for name in shown.columns]
    return {"columns": columns, "rows": shown.to_numpy().tolist()}


def _kind(name: str, cells: pd.Series) -> str:
    """A paper's printed numbers are set apart; text stands left."""
    if name.startswith(("P1", "P2")):
        return "printed"
    return "number" if is_number(cells) else "text"


def _printed(printed: Printed) -> dict[str, Any]:
    return {"title": printed.title, "note": printed.note, "flags": printed.flags, **_table(printed.shown)}


def _shortened(note: str) -> tuple[str, str]:
    """What is said at once, and what only if asked for: of fifty labels a figure has much to say."""
    if len(note) <= LETTERS:
        return note, ""
    end = max(note.rfind("; ", 0, LETTERS), note.rfind(". ", 0, LETTERS), note.rfind(", ", 0, LETTERS // 2)) + 1
    return (note[:end], note[end:].strip()) if end else (note, "")


def _inline(svg: str, part: Part) -> Markup:
    """The figure as an element of the page, with names of its own for what it defines, that are in no other."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = REFERENCE.sub(rf"\g<1>{part.name}-\g<2>", svg)
    view = re.search(r'viewBox="[^"]+"', svg)
    assert view is not None
    opening = Markup('<svg xmlns:xlink="http://www.w3.org/1999/xlink" {} role="img" aria-label="{}">').format(
        Markup(view.group()),  # noqa: S704 (matplotlib's, as all below)
        printable(_shortened(part.note)[0]),
    )
    return opening + Markup(svg[svg.index(">") + 1 :])  # noqa: S704


def _packed(text: str) -> str:
    """Text as a browser unpacks it: gzip in base 64, the same bytes each time."""
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()
