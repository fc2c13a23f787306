"""Spectra of ΔW: how its singular values are spread (P1 Figure 3)."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import spectra
from analysis.counts import EPS32
from analysis.figures import (
    TWO_COLUMNS,
    add_legend,
    by_label,
    by_name,
    fitting,
    handles_of,
    labelled,
    make_higher,
    of_role,
    split,
)
from analysis.naming import role_key
from relora_lab.errors import printable

ORDER = 3
SIZE = (TWO_COLUMNS, 2.1)
PANELS = {"q": "Q", "k": "K", "v": "V", "down": "down"}  # the paper's
ROW, MOST, HEIGHT = 4, 64, 1.75  # panels beside each other and in all; inches of a row of them
BINS, UPPER, HIGHEST = 50, 2.0, 3.0  # the paper's: 50 bins on [0, 2], density cut at 3
FITTING = 0.25  # share of the values that are not 0 for which the paper's bins are kept
COVERED = 0.999  # share of them that other bins hold
ROUND = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)


def data(runs: pd.DataFrame) -> pd.DataFrame:
    """label, role, left, right, density, count, total: histograms pooled over layers and seeds, as P1 draws them.

    `density` integrates to the share of values within the bins; `total` counts all values, also those beyond.
    """
    found = of_paper(spectra.of_runs(runs))
    return (
        labelled(histograms(found, upper=upper_end(found)), runs) if found["sigma"].notna().any() else pd.DataFrame()
    )


def of_paper(found: pd.DataFrame) -> pd.DataFrame:
    """Of these spectra those of the projections that the paper shows; of a model that has none of them (T5) all."""
    shown = found["role"].isin(list(PANELS))
    return found[shown] if shown.any() else found


def histograms(found: pd.DataFrame, by: Sequence[str] = ("role",), *, upper: float = UPPER) -> pd.DataFrame:
    """As `data`, of any spectra with a `label`, of the values that have `by` in common; bins on [0, upper]."""
    keys, edges = ["label", *by], np.linspace(0, upper, BINS + 1)
    groups = found.dropna(subset="sigma").groupby(keys, observed=True)["sigma"]
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
    fewer of them in the first or beyond the last. Of all labels and panels together, without those that are 0 to
    rounding (≤ eps32·max(rows, cols)·σ1).
    """
    rows = found.dropna(subset="sigma")
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
    """A panel a projection, at most four of them beside each other."""
    frame, _ = first_roles(frame, MOST)
    roles = sorted(set(frame["role"]), key=role_key)
    columns = min(ROW, len(roles))
    rows = -(-len(roles) // columns)
    make_higher(ax, 0.35 + HEIGHT * rows)
    panels = split(ax, rows, columns)
    for number, (panel, role) in enumerate(zip(panels, roles, strict=False)):
        draw_panel(frame[frame["role"] == role], panel, frame)
        lowest, first = number + columns >= len(roles), number % columns == 0
        panel.tick_params(labelbottom=lowest, labelleft=first)
        panel.set_xlabel("singular value" if lowest else "")
        panel.set_ylabel("density" if first else "")
    entitle(panels, roles, columns)
    for panel in panels[len(roles) :]:
        panel.set_axis_off()
    add_legend(panels[-1], handles=handles_of(panels, frame))


def draw_panel(rows: pd.DataFrame, panel: Axes, frame: pd.DataFrame) -> None:
    """The histograms of one panel, on axes that suit the whole frame."""
    for label, bins, look in by_label(rows):
        panel.stairs(bins["density"], [*bins["left"], bins["right"].iloc[-1]], label=label, **look)
    panel.set_xlim(0, frame["right"].max())
    panel.set_ylim(0, highest(frame))


def entitle(panels: Sequence[Axes], roles: Sequence[str], columns: int) -> None:
    """Say whose panel each is, in letters that fit one of so many columns."""
    names = [PANELS.get(role) or of_role(role) for role in roles]
    titles = [f"{name} projections" if columns <= ROW else name.replace(".", ".\n") for name in names]
    longest = max(len(line) for title in titles for line in title.split("\n"))
    for panel, title in zip(panels, titles, strict=False):
        panel.set_title(title, fontsize=fitting(longest, (TWO_COLUMNS - 0.8) / columns))


def first_roles(frame: pd.DataFrame, most: int) -> tuple[pd.DataFrame, str]:
    """The rows of as many roles as are drawn, and in words which others there are."""
    roles = sorted(set(frame["role"]), key=role_key)
    others = ", ".join(map(printable, roles[most:]))
    return frame[frame["role"].isin(roles[:most])], f"; not drawn: {others}" if others else ""


def highest(frame: pd.DataFrame) -> float:
    """Where the density is cut: at the paper's 3 in the paper's bins, unless all but the first would lie flat."""
    beside = float(frame.loc[frame["left"] > 0, "density"].max())
    papers = frame["right"].max() == UPPER and beside >= HIGHEST / 10
    return HIGHEST if papers or beside == 0 else 1.1 * beside


def describe(frame: pd.DataFrame) -> str:
    """What the cut axes do not show."""
    frame, others = first_roles(frame, MOST)
    told = []
    for label, rows in by_name(frame):
        total = rows.drop_duplicates("role")["total"].sum()
        first = rows.loc[rows["left"] == 0, "count"].sum()
        told.append(f"{label} has {first / total:.0%} of its values in the first bin and {beyond(rows)}")
    return f"{about(frame)}, pooled over layers{others}: {'; '.join(told)}."


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
