"""One file a table. `table(runs)` is its numbers, its docstring's first line what the report calls it, NOTE what is
said below them; `title(frame)` (or None) and `note(frame)` where these depend on them. PRINTED names tables of the
papers (analysis/paper.py) that a report shows beside it, NOTHING says in words why it is empty.

Columns `x` and `x_error` are a mean and its standard error, `x_low` and `x_high` a range; people read them through
`shown`. A table that has nothing to say of these runs is empty; one with OPTIONAL = True a report then leaves out.
"""

import importlib
import math
import re
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from analysis import modules
from analysis.load import METRICS
from relora_lab.errors import printable
from relora_lab.tasks import TASKS

DIGITS = {
    "loss": 4,
    "difference": 4,
    "interval": 4,
    "bootstrap": 4,
    "below_percent": 1,
    "P1_below_percent": 1,
    "zeroed_percent": 1,
    "gap": 4,
    "gap_interval": 4,
    "examples/s": 1,
    "full_rank": 1,
    "low_rank": 1,
    "adjusted": 1,
    "adjusted_33": 1,
    "immediate_percent": 1,
    "total_percent": 1,
    "total_percent_33": 1,
    "of_full_rank_percent": 1,
}
DIGITS |= dict.fromkeys([*METRICS, "Avg", *(task.title for task in TASKS.values())], 2)  # percent
IN_POINTS = ("difference", "interval", "bootstrap", "gap", "gap_interval")  # of scores, no nats
SIGNIFICANT = ("lr", "low_rank_lr", "relative_τ", "value", "param", "grad", "os", "act", "extra", "total")
COUNTS = ("below_0.1", "above_0.1", "below_τ")  # means of counts
HUGE = 1e7  # from here on a number with decimals is written as 1.0e7


def available() -> list[ModuleType]:
    """The modules of this folder, in the order in which a report has them."""
    return modules.of_package(sys.modules[__name__])


def load(name: str) -> ModuleType:
    """The table module of that name."""
    return importlib.import_module(f"{__name__}.{name}")


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as text: "1.234 ± 0.005", "4 … 8" for a range, "✓" for true, "–" for what is missing.

    Columns that say nothing are left out.
    """
    text: dict[str, pd.Series] = {}
    of_scores = not set(METRICS).isdisjoint(frame.columns)
    for name in frame.columns:
        stem, kind = _kind(name, frame)
        if kind in ("error", "high"):
            continue
        digits = 2 if of_scores and stem in IN_POINTS else DIGITS.get(stem.partition(" @")[0], 3)
        values = _texts(frame[name], stem, digits)
        if f"{stem}_error" in frame:
            errors = _texts(frame[f"{stem}_error"], stem, digits)
            values = values.where(errors == "–", values + " ± " + errors)
        if kind == "low":
            highs = _texts(frame[f"{stem}_high"], stem, digits)
            values = values.where(values == highs, values + " … " + highs)
        if not set(values) <= {"", "–"}:
            text[stem.replace("_", " ")] = values
    return pd.DataFrame(text, index=frame.index, dtype=object)


def _kind(name: str, frame: pd.DataFrame) -> tuple[str, str]:
    """("loss", "error") for loss_error beside loss, ("rank", "low") for rank_low beside rank_high."""
    stem, _, end = name.rpartition("_")
    if end == "error" and stem in frame:
        return stem, end
    if end in ("low", "high") and {f"{stem}_low", f"{stem}_high"} <= set(frame.columns):
        return stem, end
    return name, "value"


def _texts(values: pd.Series, stem: str, digits: int) -> pd.Series:
    if stem in SIGNIFICANT and pd.api.types.is_float_dtype(values):
        return values.map(lambda value: "–" if pd.isna(value) else f"{value:.3g}").astype(object)
    if stem in COUNTS:
        digits = 1 if (values.dropna() % 1).any() else 0
    return values.map(lambda value: show(value, digits)).astype(object)


def show(value: Any, digits: int = 3) -> str:
    """A number as people write it: thousands apart, a true minus; or text, of which a terminal obeys nothing."""
    if isinstance(value, bool | np.bool_):
        return "✓" if value else ""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, int | np.integer):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, float | np.floating):
        number = float(value)
        small = 0 < abs(number) < 0.5 * 10.0**-digits  # which 0.000 would hide
        text = f"{number:.1e}" if small or abs(number) >= HUGE else f"{number:,.{digits}f}"
        return re.sub(r"e\+?(-?)0*", r"e\1", text).replace("-", "−")
    return printable(str(value))
