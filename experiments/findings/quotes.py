"""The numbers that prose names, as the CSV files and the papers have them: {loss[relora]}, {of[relora-lora-warm]}."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from analysis import paper
from analysis.statistics import standard_error

# Digits after the point, of a mean and of a difference; 1 is percent or counts.
DIGITS = {"loss": (3, 4), "early": (4, 5), "rise": (2, 2), "overlap": (3, 3), "to_full": (3, 3), "largest": (2, 2)}
DIGITS |= {"W_drop": (1, 1), "sBA_drop": (1, 1), "diverged": (0, 0), "orphans": (0, 0), "gap": (0, 0), "rank": (1, 1)}
OF_ALL = ("diverged", "orphans")
UNITS = dict.fromkeys(("loss", "early", "rise"), "nats")
UNITS |= dict.fromkeys(("score", "below", "high", "drawn_high"), "points")


@dataclass(frozen=True)
class Looked:
    """`{NAME[key]}` in a format string is `find(key)`. Raises ValueError, naming both, for what is not there."""

    name: str
    find: Callable[[str], str]

    def __getitem__(self, key: str) -> str:
        try:
            return self.find(key)
        except (KeyError, IndexError):
            raise ValueError(f"{{{self.name}[{key}]}} is not there") from None


def of(runs: pd.DataFrame, verdicts: pd.DataFrame) -> dict[str, Any]:
    """What may be quoted: a value by row (mean ± standard error); `of`, the contrast of a claim; P1 and P2 by
    "Table 2/relora/130M" (the column may be left out where there is one)."""
    by_claim = verdicts.set_index("claim")
    values = {name: Looked(name, partial(mean, runs, name)) for name in runs.columns[7:]}
    papers = {name: Looked(name, partial(printed, name)) for name in ("P1", "P2")}
    return {**values, **papers, "of": Looked("of", lambda claim: difference(by_claim.loc[claim]))}


def mean(runs: pd.DataFrame, value: str, row: str) -> str:
    """ "1.512 ± 0.003", over seeds; one number where all are equal to its digits; "3 of 5" seeds that diverged.

    Runs that did not finish count for OF_ALL alone.
    """
    mine = runs[runs["label"] == row]
    if value not in OF_ALL:
        mine = mine[mine["state"] == "finished"]
    known = mine[value].dropna().astype(float)
    if known.empty:
        raise KeyError(row)
    if value == "diverged":
        return f"{known.sum():.0f} of {len(known)}"
    digits = DIGITS.get(value, (1, 1))[0]
    told, error = number(known.mean(), digits), number(standard_error(known), digits)
    if known.nunique() > 1 and error.strip("0."):
        return f"{told} ± {error}"
    return number(known.mean(), 0) if known.iloc[0].is_integer() and known.nunique() == 1 else told


def difference(verdict: "pd.Series[Any]") -> str:
    """ "−0.0118 (−0.0150 … −0.0086) nats": a contrast with its 95 % interval, or the number that all seeds have."""
    value = str(verdict["value"])
    digits, unit = DIGITS.get(value, (1, 1))[1], UNITS.get(value, "")
    told = number(verdict["mean"], digits, signed=True)
    if verdict["low"] != verdict["high"]:
        told += f" ({number(verdict['low'], digits)} … {number(verdict['high'], digits)})"
    return f"{told} {unit}".strip()


def printed(name: str, place: str) -> str:
    """What a paper prints: "Table 2/relora/130M"."""
    known, parts = paper.numbers(), ["paper", "table", "row", "column"]
    for part, wanted in zip(parts, [name, *place.split("/")], strict=False):
        known = known[known[part] == wanted]
    if len(known) != 1:
        raise KeyError(place)
    return str(known["text"].iloc[0])


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """With a minus that is one, and no minus before zeros."""
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if not text.strip("+-0."):
        text = text.lstrip("+-")
    return text.replace("-", "−")
