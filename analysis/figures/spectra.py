"""Spectra of ΔW: how its singular values are spread (P1 Figure 3)."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import spectra
from analysis.counts import EPS32
from analysis.figures import TWO_COLUMNS, add_legend, by_label, handles_of, plain, split
from analysis.naming import role_key

ORDER = 3
SIZE = (TWO_COLUMNS, 2.1)
PANELS = {"q": "Q", "k": "K", "v": "V", "down": "down"}
BINS, UPPER, HIGHEST = 50, 2.0, 3.0  # the paper's: 50 bins on [0, 2], density cut at 3
FITTING = 0.25  # share of the values that are not 0 for which the paper's bins are kept
COVERED = 0.999  # share of them that other bins hold
ROUND = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)


def data(runs: pd.DataFrame) -> pd.DataFrame:
    """label, role, left, right, density, count, total: histograms pooled over layers and seeds, as P1 draws them.

    `density` integrates to the share of values within the bins; `total` counts all values, also those beyond.
    """
    found = spectra.of_runs(runs)
    return histograms(found, upper=upper_end(found)) if len(found) else found


def histograms(found: pd.DataFrame, by: Sequence[str] = ("role",), *, upper: float = UPPER) -> pd.DataFrame:
    """As `data`, of any spectra with a `label`, of the values that have `by` in common; bins on [0, upper]."""
    keys, edges = ["label", *by], np.linspace(0, upper, BINS + 1)
    groups = drawn(found).groupby(keys, observed=True)["sigma"]
    counted = {key: (np.histogram(sigma, edges)[0], len(sigma)) for key, sigma in groups}
    if not counted:
        return pd.DataFrame()  # all of them not finite
    frame = pd.DataFrame([*counted], columns=keys)
    frame = frame.loc[frame.index.repeat(BINS)].reset_index(drop=True)
    count = np.concatenate([counts for counts, _ in counted.values()])
    total = np.repeat([size for _, size in counted.values()], BINS)
    left, right = (np.tile(ends, len(counted)) for ends in (edges[:-1], edges[1:]))
    frame = frame.assign(left=left, right=right, density=count / total / (right - left), count=count, total=total)
    return frame.astype({"label": found["label"].dtype})


def upper_end(found: pd.DataFrame) -> float:
    """Where bins that suit these spectra end: at the paper's 2, or where that shows nothing at another round number.

    It is 2 if a quarter of the values lies between 0.2 and 2; else the bins hold 99.9 % of the values, if that leaves
    fewer of them in the first or beyond the last. Of all labels and panels together, without
    those that are 0 to rounding (≤ eps32·max(rows, cols)·σ1).
    """
    rows = drawn(found)
    matrix = [name for name in ("label", "seed", "run", "matrix") if name in rows]
    largest = rows.groupby(matrix, observed=True, sort=False)["sigma"].transform("max")
    sigma = rows.loc[rows["sigma"] > EPS32 * rows[["rows", "cols"]].max(axis=1) * largest, "sigma"]
    shown = {UPPER: sigma.between(UPPER / BINS, UPPER).mean()}
    if sigma.empty or sigma.between(UPPER / 10, UPPER).mean() >= FITTING:
        return UPPER
    end = float(sigma.quantile(COVERED))
    power = math.floor(math.log10(end))
    fitted = next(upper for upper in (float(f"{digits}e{power}") for digits in ROUND) if upper >= end)
    shown[fitted] = sigma.between(fitted / BINS, fitted).mean()
    return max(shown, key=lambda upper: shown[upper])


def draw(frame: pd.DataFrame, ax: Axes) -> None:
    """A panel a projection."""
    shown = sorted(set(frame["role"]), key=role_key)
    panels = split(ax, 1, len(shown), sharey=True)
    for panel, role in zip(panels, shown, strict=True):
        draw_panel(frame[frame["role"] == role], panel, frame)
        panel.set_title(title_of(role))
        panel.set_xlabel("singular value")
    panels[0].set_ylabel("density")
    add_legend(panels[-1], handles=handles_of(panels, frame))


def draw_panel(rows: pd.DataFrame, panel: Axes, frame: pd.DataFrame) -> None:
    """The histograms of one panel, on axes that suit the whole frame."""
    for label, bins, look in by_label(rows):
        panel.stairs(bins["density"], [*bins["left"], bins["right"].iloc[-1]], label=label, **look)
    panel.set_xlim(0, frame["right"].max())
    panel.set_ylim(0, highest(frame))


def title_of(role: str) -> str:
    """What a panel of that role is called."""
    return f"{PANELS.get(role, plain(role))} projections"


def highest(frame: pd.DataFrame) -> float:
    """Where the density is cut: at the paper's 3 in the paper's bins, unless all but the first would lie flat."""
    beside = float(frame.loc[frame["left"] > 0, "density"].max())
    papers = frame["right"].max() == UPPER and beside >= HIGHEST / 10
    return HIGHEST if papers or beside == 0 else 1.1 * beside


def describe(frame: pd.DataFrame) -> str:
    """What the cut axes do not show."""
    told = []
    for label, rows, _ in by_label(frame):
        total = rows.drop_duplicates("role")["total"].sum()
        first = rows.loc[rows["left"] == 0, "count"].sum()
        told.append(f"{label} has {first / total:.0%} of its values in the first bin and {beyond(rows)}")
    return f"{about(frame)}, pooled over layers: {'; '.join(told)}."


def about(frame: pd.DataFrame) -> str:
    """Which bins and axes these are."""
    upper, top = frame["right"].max(), highest(frame)
    cut = "density cut at 3 as in the paper" if top == HIGHEST else f"density cut at {top:.3g}"
    if upper == UPPER:
        return f"Histograms of 50 bins on [0, 2], {cut}"
    return (
        f"Histograms of 50 bins on [0, {upper:g}], where {COVERED:.1%} of the values that are not 0 lie (the paper's "
        f"bins, on [0, 2], would show few of them), {cut}"
    )


def beyond(rows: pd.DataFrame) -> str:
    """How many of the values no bin holds."""
    total = rows.drop_duplicates(["label", *{"layer", "role"} & set(rows)])["total"].sum()
    return f"{1 - rows['count'].sum() / total:.1%} above {rows['right'].max():g}"


def drawn(found: pd.DataFrame) -> pd.DataFrame:
    """The paper's roles, or the first four where none of them is there; without what is not finite."""
    roles = [role for role in PANELS if role in set(found["role"])] or sorted(set(found["role"]), key=role_key)[:4]
    return found[found["role"].isin(roles)].dropna(subset="sigma")
