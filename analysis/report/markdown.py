"""The report as Markdown, in which foreign text is shown as it is."""

import re
from collections.abc import Iterator, Sequence

import pandas as pd

from analysis.report.part import Part, Section
from relora_lab.errors import printable


def render(about: str, findings: Sequence[str], sections: Sequence[Section]) -> str:
    """The whole text, with links to the files beside it."""
    lines = ["# Report", "", plain(about), "", *(f"- {plain(finding)}" for finding in findings), ""]
    for section in sections:
        if section.title:
            lines += [f"## {plain(section.title)}", ""]
        for part in section.parts:
            lines += [*_part(part, "###" if section.title else "##"), ""]
        if section.left_out:
            lines += [f"Left out, having nothing to show of these runs: {plain('; '.join(section.left_out))}.", ""]
    return "\n".join(lines)


def _part(part: Part, heading: str) -> Iterator[str]:
    yield from (f"{heading} {plain(part.title)}", "")
    if part.drawing:
        yield from (f"![{plain(part.title)}]({part.file('png')})", "")
    elif part.shown is not None:
        yield from _table(part.shown)
    yield plain(part.note) + ("" if part.frame.empty else f" Numbers: [{part.name}.csv]({part.file('csv')})")
    for printed in part.printed:
        yield from ("", f"**{plain(printed.title)}, as printed**: {plain(printed.note)}", "")
        yield from _table(printed.shown)
        yield from (f"- {plain(flag)}" for flag in printed.flags)


def _table(shown: pd.DataFrame) -> Iterator[str]:
    yield _row(map(plain, shown.columns))
    yield _row(["---"] * len(shown.columns))
    yield from (_row(map(plain, row)) for row in shown.itertuples(index=False))
    yield ""


def _row(cells: Iterator[str] | Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plain(text: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#~&$]|^[-+=])", r"\\\1", printable(str(text)))
