"""Held-out loss during training (P2 Figures 3, 5, 7 and 9)."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from analysis import logs, measures
from analysis.figures import ONE_COLUMN, add_band, add_legend, by_label, by_name, labelled
from analysis.figures.loss import end_of, over_seeds, show_settled

ORDER = 10
OPTIONAL = True
SIZE = (ONE_COLUMN, 2.4)


def data(runs: pd.DataFrame) -> pd.DataFrame:
    """label, step, loss (mean over seeds of the held-out loss, nats), low and high (the seeds' range), n; of a task
    its score (percent), by its metric's name, in place of loss.

    Empty where no run was evaluated before its end.
    """
    measure = measures.of_runs(runs)
    value = "loss" if measure is measures.PERPLEXITY else measure.column
    found = pd.concat([evaluations(run, value) for _, run in runs.iterrows()])
    if not found.duplicated("run").any():
        return pd.DataFrame()
    return labelled(over_seeds(found.rename(columns={value: "loss"})), runs).rename(columns={"loss": value})


def draw(frame: pd.DataFrame, ax: Axes) -> None:
    """A line a label; a band where there are several seeds."""
    measure = measures.of_frame(frame)
    for label, rows, look in by_label(frame.rename(columns={measure.column: "loss"})):
        add_curve(ax, rows, look, label)
    if measure is measures.PERPLEXITY:
        show_settled(ax, frame)
    ax.set_xlabel("update")
    ax.set_ylabel("held-out loss (nats)" if measure is measures.PERPLEXITY else measure.shown)
    add_legend(ax)


def title(frame: pd.DataFrame) -> str | None:
    """Of a task's figure; that of text has the docstring's."""
    measure = measures.of_frame(frame)
    return None if measure is measures.PERPLEXITY else f"{measure.title} during training"


def describe(frame: pd.DataFrame) -> str:
    """Where each line ends."""
    measure = measures.of_frame(frame)
    frame = frame.rename(columns={measure.column: "loss"})
    ends = ", ".join(f"{label} {end_of(rows, frame)}" for label, rows in by_name(frame))
    if measure is measures.PERPLEXITY:
        return f"Held-out loss by update, mean over seeds; it ends at {ends} nats."
    return f"Held-out {measure.column} (percent) by update, mean over seeds; it ends at {ends}."


def evaluations(run: pd.Series, value: str = "loss") -> pd.DataFrame:
    """Held-out loss of a run (a row of load_runs), or a metric in percent, whenever it was evaluated: label, run,
    step, and it."""
    lines = logs.read(run["path"], "eval")[["step", value]]
    lines = lines if value == "loss" else measures.named(value).values(lines)
    return lines.assign(label=run["label"], run=run["run"])


def add_curve(ax: Axes, rows: pd.DataFrame, look: dict[str, Any], label: str) -> None:
    """A line with its band; of one evaluation alone a dot."""
    ax.plot(rows["step"], rows["loss"], label=label, marker="." if len(rows) == 1 else "", **look)
    add_band(ax, rows, look)
