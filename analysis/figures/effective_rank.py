"""Effective rank of ΔW, by layer and projection (Roy & Vetterli 2007)."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import spectra
from analysis.counts import rank_measures
from analysis.figures import TWO_COLUMNS, by_label, by_name, fitting, labelled, make_higher, of_role, split
from analysis.naming import role_key
from relora_lab.errors import printable

ORDER = 6
SIZE = (TWO_COLUMNS, 1.6)
COLOURS = "cividis"  # which the colour-blind see alike
FEW, MANY = 4, 6  # panels beside each other, of up to eight labels and of more
CELL, PAGE = 0.14, 7.6  # inches: the height of a cell that has room for its number, and of all panels at most
LEGIBLE, LETTER = 4.0, 0.06  # points; inches that a letter of a role needs
VALUES = ["per", "effective_rank"]


def data(runs: pd.DataFrame) -> pd.DataFrame:
    """label, layer, role, effective_rank (exp of the entropy of σ / Σσ), per (that over the smaller side), n: means
    over seeds, and over the n matrices that a layer has of the role."""
    found = spectra.of_runs(runs)
    return labelled(by_layer(found), runs) if len(found) else found


def by_layer(found: pd.DataFrame) -> pd.DataFrame:
    """As `data`, of any spectra with a `label`. A matrix of non-finite entries has no rank, and is left out."""
    measures = rank_measures(found).dropna(subset="per")
    groups = measures.groupby(["label", "layer", "role"], observed=True)
    frame = groups[VALUES].mean().assign(n=groups.size()).reset_index()
    return frame.astype({"label": found["label"].dtype})


def draw(frame: pd.DataFrame, ax: Axes) -> None:
    """A panel a label, in one scale of colours; the effective rank in each cell that has room for it."""
    layers, roles = sorted(set(frame["layer"])), sorted(set(frame["role"]), key=role_key)
    labels = list(by_label(frame))
    columns = min(len(labels), FEW if len(labels) <= 2 * FEW else MANY)
    rows = -(-len(labels) // columns)
    width, height = (TWO_COLUMNS - 1.1) / columns, min(max(CELL * len(layers), 0.7), PAGE / rows)  # of a panel
    names = [of_role(role) for role in roles]
    letters = max(map(len, names)) + 1
    upright = fitting(letters, width / len(roles)) < 7
    figure = make_higher(ax, rows * (height + 0.25) + 0.45 + (LETTER * max(letters - 5, 0) if upright else 0))
    panels = split(ax, rows, columns)
    longest = max(len(_text(rank)) for rank in frame["effective_rank"]) + 0.5
    number_size = min(fitting(longest, width / len(roles)), 55 * height / len(layers))
    title_size = fitting(max(len(label) for label, _, _ in labels), width)
    numbered = range(0, len(layers), _every(len(layers), height))
    highest = frame["per"].max() or 1.0
    for number, (panel, (label, mine, _)) in enumerate(zip(panels, labels, strict=False)):
        wide = (mine.pivot(index="layer", columns="role", values=name) for name in VALUES)
        shares, ranks = (values.reindex(index=layers, columns=roles).to_numpy() for values in wide)
        mesh = panel.pcolormesh(np.ma.masked_invalid(shares), cmap=COLOURS, vmin=0, vmax=highest)
        if number_size >= LEGIBLE:
            _write(panel, ranks, shares / highest, number_size)
        panel.set_title(label, fontsize=title_size)
        lowest, first = number + columns >= len(labels), number % columns == 0
        panel.set_xticks(np.arange(len(roles)) + 0.5, names if lowest else [], rotation=90 if upright else 0)
        panel.set_yticks([row + 0.5 for row in numbered], [layers[row] for row in numbered] if first else [])
        panel.set_ylabel("layer" if first else "")
        panel.invert_yaxis()
        panel.tick_params(length=0)
        panel.grid(visible=False)
        panel.set_facecolor("0.85")  # of what has no rank
    for panel in panels[len(labels) :]:
        panel.set_axis_off()
    figure.colorbar(mesh, ax=panels, label="share of full rank", pad=0.01, aspect=rows * height / 0.12)


def describe(frame: pd.DataFrame) -> str:
    """The mean of each label, and where it is least and most."""
    told = []
    for label, rows in by_name(frame):
        least, most = (rows.loc[place] for place in (rows["per"].idxmin(), rows["per"].idxmax()))
        ends = (f"{end['per']:.1%} in {printable(end['role'])} of layer {end['layer']}" for end in (least, most))
        mean = f"{rows['effective_rank'].mean():.1f}, {rows['per'].mean():.1%} of full rank"
        told.append(f"{label} {mean} ({', '.join(ends)})")
    return (
        "Effective rank: how many equal singular values would have the entropy of ΔW's. Numbers, where they fit, are "
        "ranks, colours their share of the smaller side, of all labels on one scale. "
        f"Mean (least, most): {'; '.join(told)}."
    )


def _every(layers: int, inches: float) -> int:
    """How many layers there are for each that can be named."""
    return -(-layers // max(1, int(9 * inches)))


def _write(panel: Axes, ranks: np.ndarray, shades: np.ndarray, size: float) -> None:
    for (row, column), rank in np.ndenumerate(ranks):
        if np.isfinite(rank):
            text = panel.text(column + 0.5, row + 0.5, _text(rank), ha="center", va="center", fontsize=size)
            text.set_color("black" if shades[row, column] > 0.55 else "white")
            text.set_in_layout(False)


def _text(rank: float) -> str:
    return f"{rank:.1f}" if rank < 9.95 else f"{rank:.0f}"
