"""Training loss, with the parameters that were trained below it (P1 Figure 1)."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from analysis.figures import ONE_COLUMN, add_band, add_legend, by_label, labelled, split
from relora_lab.runs import RunFolder

ORDER = 1
SIZE = (ONE_COLUMN, 2.9)
POINTS = 400  # that a line is drawn with


def data(runs: pd.DataFrame) -> pd.DataFrame:
    """label, step, loss (mean over seeds of the training loss, smoothed over 1 % of the steps), low and high (the
    seeds' range), n, trained (parameters)."""
    found = [_of_run(run) for _, run in runs.iterrows()]
    by_step = pd.concat(found).groupby(["label", "step"], observed=True)
    frame = by_step["loss"].agg(["mean", "min", "max", "count"]).set_axis(["loss", "low", "high", "n"], axis=1)
    frame = frame.assign(trained=by_step["trained"].first()).reset_index()
    return labelled(frame, runs)


def draw(frame: pd.DataFrame, ax: Axes) -> None:
    """Loss above, trained parameters below; a band where there are several seeds."""
    above, below = split(ax, 2, 1, sharex=True, height_ratios=[5, 1])
    for label, rows, look in by_label(frame):
        above.plot(rows["step"], rows["loss"], label=label, **look)
        add_band(above, rows, look)
        below.plot(rows["step"], rows["trained"], **look)
    # From where the first five percent have passed: the fall from chance would flatten all that follows.
    settled = frame[frame["step"] >= 0.05 * frame["step"].max()]
    low, high = settled["low"].min(), settled["high"].max()
    above.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    above.set_ylabel("training loss (nats)")
    add_legend(above)
    below.set_ylim(0, 1.2 * frame["trained"].max())
    below.yaxis.set_major_formatter(EngFormatter(sep=""))
    below.set_ylabel("trained")
    below.set_xlabel("update")


def describe(frame: pd.DataFrame) -> str:
    """Where each line ends."""
    ends = ", ".join(f"{label} {rows['loss'].iloc[-1]:.3f}" for label, rows, _ in by_label(frame))
    return f"Smoothed training loss by update; it ends at {ends} nats. Below: how many parameters were trained."


def _of_run(run: pd.Series) -> pd.DataFrame:
    lines = pd.DataFrame(RunFolder(run["path"]).logs.read("metrics"), columns=["step", "loss"]).astype(float)
    window = max(1, int(run["steps"]) // 100)
    smooth = lines.assign(loss=lines["loss"].rolling(window, min_periods=1).mean())
    every = max(1, int(run["steps"]) // POINTS)
    kept = smooth[(smooth["step"] % every == 0) | (smooth["step"] == smooth["step"].max())]
    full_rank = (kept["step"] <= run["training.warm_start"]) | (run["method"] == "full")
    trained = full_rank.map({True: run["parameters"], False: run["trained"]})
    return kept.assign(label=run["label"], trained=trained.astype(float))
