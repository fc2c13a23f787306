"""Spectra of ΔW: how its singular values are spread (P1 Figure 3)."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import spectra
from analysis.checkpoints import role_key
from analysis.figures import TWO_COLUMNS, add_legend, by_label, split

ORDER = 3
SIZE = (TWO_COLUMNS, 2.1)
PANELS = {"q": "Q", "k": "K", "v": "V", "down": "down"}
BINS, UPPER, HIGHEST = 50, 2.0, 3.0  # the paper's: 50 bins on [0, 2], density cut at 3


def data(runs: pd.DataFrame) -> pd.DataFrame:
    """label, role, left, right, density, count: histograms pooled over layers and seeds, as P1 draws them.

    `density` integrates to the share of values within [0, 2]; `total` counts all values, also those beyond.
    """
    found = spectra.of_runs(runs)
    return histograms(found) if len(found) else found


def histograms(found: pd.DataFrame) -> pd.DataFrame:
    """As `data`, of any spectra with a `label`; of the first four roles where the paper's are not there."""
    roles = [role for role in PANELS if role in set(found["role"])] or sorted(set(found["role"]), key=role_key)[:4]
    edges = np.linspace(0, UPPER, BINS + 1)
    bins = []
    for (label, role), group in found[found["role"].isin(roles)].groupby(["label", "role"], observed=True):
        sigma = group["sigma"].dropna()
        if sigma.empty:
            continue  # all of them not finite
        counts, _ = np.histogram(sigma, edges)
        density = counts / len(sigma) / np.diff(edges)
        bins.append(pd.DataFrame({"label": label, "role": role, "left": edges[:-1], "right": edges[1:]}))
        bins[-1] = bins[-1].assign(density=density, count=counts, total=len(sigma))
    return pd.concat(bins, ignore_index=True).astype({"label": found["label"].dtype}) if bins else pd.DataFrame()


def draw(frame: pd.DataFrame, ax: Axes) -> None:
    """A panel a projection."""
    shown = sorted(set(frame["role"]), key=role_key)
    panels = split(ax, 1, len(shown), sharey=True)
    for panel, role in zip(panels, shown, strict=True):
        for label, rows, look in by_label(frame[frame["role"] == role]):
            edges = [*rows["left"], rows["right"].iloc[-1]]
            panel.stairs(rows["density"], edges, label=label, **look)
        panel.set_title(f"{PANELS.get(role, role)} projections")
        panel.set_xlim(0, UPPER)
        panel.set_ylim(0, HIGHEST)
        panel.set_xlabel("singular value")
    panels[0].set_ylabel("density")
    add_legend(panels[-1])


def describe(frame: pd.DataFrame) -> str:
    """What the cut axes do not show."""
    told = []
    for label, rows, _ in by_label(frame):
        total = rows.drop_duplicates("role")["total"].sum()
        first = rows.loc[rows["left"] == 0, "count"].sum()
        beyond = total - rows["count"].sum()
        told.append(
            f"{label} has {first / total:.0%} of its values in the first bin and {beyond / total:.1%} above 2"
        )
    return (
        f"Histograms of 50 bins on [0, 2], pooled over layers, density cut at 3 as in the paper: {'; '.join(told)}."
    )
