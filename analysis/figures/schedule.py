"""The learning rates that were used: cosine, and jagged cosine (P1 Figure 2)."""

import pandas as pd
from matplotlib.axes import Axes

from analysis import logs
from analysis.figures import ONE_COLUMN, add_legend, by_label, by_name, labelled
from relora_lab.runs import RunFolder

ORDER = 2
SIZE = (ONE_COLUMN, 2.0)
POINTS = 1000  # of a line, at most, but for those at which it turns


def data(runs: pd.DataFrame) -> pd.DataFrame:
    """label, step, multiplier (the update's learning rate over the peak of its phase), of each label's first
    run that has a log."""
    logged = runs[[RunFolder(path).logs.path("metrics").exists() for path in runs["path"]]]
    found = [_of_run(run) for _, run in logged.drop_duplicates("label").iterrows()]
    return labelled(pd.concat(found, ignore_index=True), runs) if found else pd.DataFrame()


def draw(frame: pd.DataFrame, ax: Axes) -> None:
    """A line a label."""
    for label, rows, look in by_label(frame):
        ax.plot(rows["step"], rows["multiplier"], label=label, **look)
    ax.set_ylim(0, 1.05)
    ax.set_xlabel("update")
    ax.set_ylabel("learning rate / peak")
    add_legend(ax)


def describe(frame: pd.DataFrame) -> str:
    """How often each line falls to zero."""
    zeros = {label: int((rows["multiplier"].iloc[1:] == 0).sum()) for label, rows in by_name(frame)}
    told = ", ".join(f"{label} {count}" for label, count in zeros.items())
    return f"Learning rate of each update over the peak of its phase. Updates at rate zero after the first: {told}."


def _of_run(run: pd.Series) -> pd.DataFrame:
    lines = logs.read(run["path"], "metrics")
    low_rank_lr = run.get("optimizer.low_rank_lr")
    peak = pd.Series(run["optimizer.lr"], index=lines.index)
    if RunFolder(run["path"]).config.low_rank and pd.notna(low_rank_lr):
        peak = peak.where(lines["step"] <= run["training.warm_start"], low_rank_lr)
    frame = pd.DataFrame({"label": run["label"], "step": lines["step"].astype(int), "multiplier": lines["lr"] / peak})
    # Between the steps at which it turns, a smooth line needs no more points than are seen.
    rises = frame["multiplier"].diff() > 0
    every = max(1, int(run["steps"]) // POINTS)
    return frame[(frame["step"] % every == 0) | (rises != rises.shift(-1)) | (frame["multiplier"] == 0)]
