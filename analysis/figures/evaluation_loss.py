"""Held-out loss during training (P2 Figures 3, 5, 7 and 9)."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from analysis import logs
from analysis.figures import ONE_COLUMN, add_band, add_legend, by_label, by_name, labelled
from analysis.figures.loss import end_of, over_seeds, show_settled

ORDER = 10
OPTIONAL = True
SIZE = (ONE_COLUMN, 2.4)


def data(runs: pd.DataFrame) -> pd.DataFrame:
    """label, step, loss (mean over seeds of the held-out loss, nats), low and high (the seeds' range), n.

    Empty where no run was evaluated before its end.
    """
    found = pd.concat([evaluations(run) for _, run in runs.iterrows()])
    return labelled(over_seeds(found), runs) if found.duplicated("run").any() else pd.DataFrame()


def draw(frame: pd.DataFrame, ax: Axes) -> None:
    """A line a label; a band where there are several seeds."""
    for label, rows, look in by_label(frame):
        add_curve(ax, rows, look, label)
    show_settled(ax, frame)
    ax.set_xlabel("update")
    ax.set_ylabel("held-out loss (nats)")
    add_legend(ax)


def describe(frame: pd.DataFrame) -> str:
    """Where each line ends."""
    ends = ", ".join(f"{label} {end_of(rows, frame)}" for label, rows in by_name(frame))
    return f"Held-out loss by update, mean over seeds; it ends at {ends} nats."


def evaluations(run: pd.Series) -> pd.DataFrame:
    """Held-out loss of a run (a row of load_runs) whenever it was evaluated: label, run, step, loss."""
    lines = logs.read(run["path"], "eval")[["step", "loss"]]
    return lines.assign(label=run["label"], run=run["run"])


def add_curve(ax: Axes, rows: pd.DataFrame, look: dict[str, Any], label: str) -> None:
    """A line with its band; of one evaluation alone a dot."""
    ax.plot(rows["step"], rows["loss"], label=label, marker="." if len(rows) == 1 else "", **look)
    add_band(ax, rows, look)
