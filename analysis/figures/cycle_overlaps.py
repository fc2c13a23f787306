"""Does a cycle's update lie where the one before it lay? Overlap of their subspaces, beside chance (P1 Section 3)."""

import pandas as pd
from matplotlib.axes import Axes

from analysis.cycles import of_runs
from analysis.figures import TWO_COLUMNS, add_band, add_legend, by_label, by_name, handles_of, labelled, split

ORDER = 8
OPTIONAL = True
SIZE = (TWO_COLUMNS, 2.1)
PANELS = {"out": "column spaces (out, of B)", "in": "row spaces (in, of A)"}


def data(runs: pd.DataFrame) -> pd.DataFrame:
    """label, side, cycle, step (its end), overlap (of its update with the one before: mean cos² of principal angles,
    mean over matrices and seeds), low, high (the seeds' range), n, chance; of runs with two or more such cycles."""
    found = of_runs(runs).rename(columns={"cycle": "before", "next_cycle": "cycle"})
    keys = ["label", "side", "cycle", "step"]
    by_run = found.groupby([*keys, "run"], observed=True)[["overlap", "chance"]].mean().dropna()
    groups = by_run.groupby(keys, observed=True)
    frame = groups["overlap"].agg(["mean", "min", "max", "count"]).set_axis(["overlap", "low", "high", "n"], axis=1)
    return labelled(frame.assign(chance=groups["chance"].mean()).reset_index(), runs)


def draw(frame: pd.DataFrame, ax: Axes) -> None:
    """A panel a side; chance as a thin line, a band where there are several seeds."""
    panels = split(ax, 1, len(PANELS), sharey=True)
    for panel, (side, title) in zip(panels, PANELS.items(), strict=True):
        for label, rows, look in by_label(frame[frame["side"] == side]):
            panel.plot(rows["step"], rows["overlap"], label=label, marker=".", markersize=4, **look)
            panel.plot(rows["step"], rows["chance"], color=look["color"], linewidth=0.5, marker="_", markersize=4)
            add_band(panel, rows, look)
        panel.set_title(title)
        panel.set_xlabel("update that ended the cycle")
    panels[0].set_ylim(bottom=0)  # of both, once all is drawn
    panels[0].set_ylabel("overlap with the cycle before")
    add_legend(panels[-1], handles=handles_of(panels, frame), below=True)


def describe(frame: pd.DataFrame) -> str:
    """The mean over cycles, and chance."""
    told = []
    for label, rows in by_name(frame):
        means = rows.groupby("side", observed=True)[["overlap", "chance"]].mean()
        sides = [f"{mean.overlap:.3f} {side} (chance {mean.chance:.3f})" for side, mean in means.iterrows()]
        told.append(f"{label} {', '.join(sides)}")
    return (
        "Mean cos² of the principal angles between the update of each cycle and that of the cycle before; the thin "
        f"line is what a random subspace would have. Mean over cycles: {'; '.join(told)}."
    )
