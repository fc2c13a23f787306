"""What a report is made of: tables and figures, with their numbers and what is said of them."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from analysis.report.drawing import Drawing


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


def prefixed(name: str, size: str) -> str:
    """A part's name in the section of a size."""
    return f"{size}-{name}" if size else name
