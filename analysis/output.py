"""Where results go: a folder that is checked before any work, CSV that a spreadsheet cannot run."""

import re
from numbers import Number
from pathlib import Path
from typing import Any

import pandas as pd

from relora_lab import files
from relora_lab.errors import printable
from relora_lab.workspace import check_place


def check(out: str | Path) -> Path:
    """`out` as a path. Raises BadInput if no folder can be there, or it is a run's or inside one; writes nothing."""
    out = Path(out)
    check_place(out)
    return out


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table, whole or not at all, `as_csv`."""
    files.write_text(path, as_csv(frame))


def as_csv(frame: pd.DataFrame) -> str:
    """A table as CSV, a row a line; text that a spreadsheet would run as a formula gets an apostrophe."""
    return str(frame.map(_harmless).rename(columns=_harmless).to_csv(index=False))


def _harmless(value: Any) -> Any:
    """A number, or printable text: what comes after a \\r would be a row of its own, and a formula perhaps."""
    if value is None or isinstance(value, Number) or value is pd.NA or value is pd.NaT:
        return value
    text = printable(str(value))
    return f"'{text}" if re.match(" *[=+@＝＋－＠-]", text) else text
