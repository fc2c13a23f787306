"""Spectra of ΔW, layer by layer: do all layers change alike? (P1 Figures 3 and 11)."""

import itertools

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import spectra
from analysis.figures import (
    TWO_COLUMNS,
    add_legend,
    by_name,
    handles_of,
    labelled,
    make_higher,
    split,
    tighten,
)
from analysis.figures.spectra import (
    ROW,
    about,
    beyond,
    draw_panel,
    entitle,
    first_roles,
    highest,
    histograms,
    of_paper,
    upper_end,
)
from analysis.naming import role_key

ORDER = 4
SIZE = (TWO_COLUMNS, 2.1)
LAYERS, COLUMNS = 24, 8  # that a page holds
PAGE, TALLEST = 8.4, 0.9  # inches: of all rows, and of one


def data(runs: pd.DataFrame) -> pd.DataFrame:
    """label, layer, role, left, right, density, count, total: histograms pooled over seeds; layers: how many the
    models have, of which 24 are drawn, evenly spread, where there are more."""
    found = of_paper(spectra.of_runs(runs))
    return labelled(histograms_by_layer(found), runs) if found["sigma"].notna().any() else pd.DataFrame()


def histograms_by_layer(found: pd.DataFrame) -> pd.DataFrame:
    """As `data`, of any spectra with a `label`."""
    rows = found.dropna(subset="sigma")
    layers = np.array(sorted(set(rows["layer"])))
    chosen = layers[np.linspace(0, len(layers) - 1, min(LAYERS, len(layers))).round().astype(int)]
    frame = histograms(rows[rows["layer"].isin(chosen)], ("layer", "role"), upper=upper_end(found))
    return frame.assign(layers=len(layers))


def draw(frame: pd.DataFrame, ax: Axes) -> None:
    """A row a layer, a column a projection, of which eight fit."""
    frame, _ = first_roles(frame, COLUMNS)
    layers, roles = sorted(set(frame["layer"])), sorted(set(frame["role"]), key=role_key)
    make_higher(ax, 0.6 + min(TALLEST * len(layers), PAGE))
    tighten(ax)
    panels = split(ax, len(layers), len(roles))  # axes that share their limits take matplotlib n² steps
    for panel, (layer, role) in zip(panels, itertools.product(layers, roles), strict=True):
        draw_panel(frame[(frame["layer"] == layer) & (frame["role"] == role)], panel, frame)
        panel.set_yticks([0, highest(frame)], ["", f"{highest(frame):.3g}"])
        lowest = layer == layers[-1]
        panel.tick_params(labelleft=role == roles[0], labelbottom=lowest, bottom=lowest)
    entitle(panels, roles, len(roles))
    for panel in panels[-len(roles) :]:
        panel.set_xlabel("singular value" if len(roles) <= ROW else "σ")
    for panel, layer in zip(panels[:: len(roles)], layers, strict=True):
        panel.set_ylabel(_name(layer), rotation=0, ha="right", va="center")
    add_legend(panels[-1], handles=handles_of(panels, frame), below=True)


def describe(frame: pd.DataFrame) -> str:
    """Which layers have the fewest and the most values in the first bin."""
    shown, layers = frame["layer"].nunique(), frame["layers"].iloc[0]
    frame, others = first_roles(frame, COLUMNS)
    told = []
    for label, rows in by_name(frame):
        first = rows[rows["left"] == 0].groupby("layer")[["count", "total"]].sum()
        share = first["count"] / first["total"]
        least, most = f"{share.min():.0%}", f"{share.max():.0%}"
        spread = f"{least} ({_name(share.idxmin())}) to {most} ({_name(share.idxmax())})"
        spread = spread if least != most else f"{most}, in every layer,"
        told.append(f"{label} has {spread} of its values in the first bin and {beyond(rows)}")
    which = f"; {shown} of {layers} layers, evenly spread" if shown < layers else ""
    return f"{about(frame)}, by layer{which}{others}: {'; '.join(told)}."


def _name(layer: int) -> str:
    return f"layer {layer}" if layer >= 0 else "no layer"
