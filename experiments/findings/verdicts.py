"""A verdict on each claim of the papers: a contrast of rows, paired by seed, against what the claim expects."""

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

import pandas as pd

from analysis.statistics import Paired, contrast, holm

SHOWS, DOES_NOT, UNTOLD = "shows", "does not show", "cannot be told"
COLUMNS = ["claim", "value", "contrast", "expect", "margin", "n", "mean", "low", "high", "p", "p_holm", "verdict"]
MARGINS = {"loss": 0.005, "score": 1.0}  # nats, and percentage points: differences that no one would act on


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a paper claims, as the sum of weight × `value` over rows, which is then below 0, above 0, or (same) within
    ±margin of 0. `says` is what it prints, in `where`; `finding` what is to be said of the measurement."""

    id: str
    paper: str
    where: str
    title: str
    says: str
    contrast: Mapping[str, float]
    expect: Literal["below", "above", "same"]
    finding: str = ""
    value: str = "loss"
    margin: float = math.nan

    @property
    def within(self) -> float:
        """The largest difference that counts as none; 0 for values of which every one counts."""
        return MARGINS.get(self.value, 0.0) if math.isnan(self.margin) else self.margin


def claims() -> list[Claim]:
    """The claims of claims.toml, in its order."""
    text = files("experiments").joinpath("findings", "claims.toml").read_text(encoding="utf-8")
    return [Claim(id=name, **about) for name, about in tomllib.loads(text).items()]


def judge(claim: Claim, found: Paired) -> str:
    """The verdict, by the 95 % t interval of the contrast.

    A direction is not shown if the interval lies within ±margin, or whole on the other side of 0; it is shown if it
    lies whole on its side. Sameness is shown if it lies within ±margin, and not shown if it lies outside that. Else,
    and from fewer than two seeds, it cannot be told.
    """
    low, high = found.interval
    if found.n < 2 or math.isnan(low):
        return UNTOLD
    small = -claim.within <= low and high <= claim.within
    if claim.expect == "same":
        return SHOWS if small else DOES_NOT if low > claim.within or high < -claim.within else UNTOLD
    as_claimed, opposite = (high < 0, low > 0) if claim.expect == "below" else (low > 0, high < 0)
    return DOES_NOT if small or opposite else SHOWS if as_claimed else UNTOLD


def verdicts(claims: Iterable[Claim], runs: pd.DataFrame) -> pd.DataFrame:
    """A row a claim: its contrast, mean, interval, p (and after Holm over all claims of a direction), n and verdict.

    `runs` are those of measured.of_grids. Runs that diverged count only where that is the value. Raises ValueError
    for a row or a value that is not there.
    """
    rows = [_row(claim, _paired(claim, runs)) for claim in claims]
    frame = pd.DataFrame(rows)
    frame["p_holm"] = holm(frame["p"].where(frame["expect"] != "same"))
    numbers = frame[["mean", "low", "high", "p", "p_holm"]]
    frame[numbers.columns] = numbers.map(lambda number: float(f"{number:.8g}"))  # on any machine
    return frame[COLUMNS]


def _paired(claim: Claim, runs: pd.DataFrame) -> Paired:
    if claim.value not in runs:
        raise ValueError(f"{claim.id}: no value is called '{claim.value}'; there are {', '.join(runs)}")
    known = runs.drop(columns="state") if claim.value == "diverged" else runs
    try:
        return contrast(known, claim.contrast, value=claim.value)
    except ValueError as error:
        raise ValueError(f"{claim.id}: {error}") from None


def _row(claim: Claim, found: Paired) -> dict[str, object]:
    low, high = found.interval
    return {
        "claim": claim.id,
        "value": claim.value,
        "contrast": in_words(claim.contrast),
        "expect": claim.expect,
        "margin": claim.within,
        "n": found.n,
        "mean": found.mean,
        "low": low,
        "high": high,
        "p": found.p,
        "verdict": judge(claim, found),
    }


def in_words(weights: Mapping[str, float]) -> str:
    """ "relora − lora", "½ a + ½ b − c"."""
    words = ""
    for label, weight in weights.items():
        sign = (" − " if weight < 0 else " + ") if words else ("−" if weight < 0 else "")
        size = "" if abs(weight) == 1 else f"{abs(weight):g} "
        words += f"{sign}{size}{label}"
    return words
