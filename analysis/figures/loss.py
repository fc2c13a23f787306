"""Training loss, with the parameters that were trained below it (P1 Figure 1)."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from analysis import logs
from analysis.figures import ONE_COLUMN, add_band, add_legend, by_label, by_name, labelled, split

ORDER = 1
SIZE = (ONE_COLUMN, 2.9)
POINTS = 400  # that a line is drawn with


def data(runs: pd.DataFrame) -> pd.DataFrame:
    """label, step, loss (mean over seeds of the training loss, smoothed over 1 % of the steps), low and high (the
    seeds' range), n, trained (parameters)."""
    found = pd.concat([smoothed(run) for _, run in runs.iterrows()])
    trained = found.groupby(["label", "step"], observed=True)["trained"].first()
    return labelled(over_seeds(found).join(trained, on=["label", "step"]), runs)


def draw(frame: pd.DataFrame, ax: Axes) -> None:
    """Loss above, trained parameters below; a band where there are several seeds."""
    above, below = split(ax, 2, 1, sharex=True, height_ratios=[5, 1])
    for label, rows, look in by_label(frame):
        above.plot(rows["step"], rows["loss"], label=label, **look)
        add_band(above, rows, look)
        below.plot(rows["step"], rows["trained"], **look)
    show_settled(above, frame)
    above.set_ylabel("training loss (nats)")
    add_legend(above)
    below.set_ylim(0, 1.2 * frame["trained"].fillna(1).max())  # a run may have lost what says how many
    below.yaxis.set_major_formatter(EngFormatter(sep=""))
    below.set_ylabel("trained")
    below.set_xlabel("update")


def describe(frame: pd.DataFrame) -> str:
    """Where each line ends."""
    ends = ", ".join(f"{label} {end_of(rows, frame)}" for label, rows in by_name(frame))
    return f"Smoothed training loss by update; it ends at {ends} nats. Below: how many parameters were trained."


def smoothed(run: pd.Series) -> pd.DataFrame:
    """Training loss of a run (of load_runs), smoothed over 1 % of its steps: label, run, step, loss, trained."""
    lines = logs.read(run["path"], "metrics")[["step", "loss"]]
    window = max(1, int(run["steps"]) // 100)
    smooth = lines.assign(loss=lines["loss"].rolling(window, min_periods=1).mean())
    every = max(1, int(run["steps"]) // POINTS)
    kept = smooth[(smooth["step"] % every == 0) | (smooth["step"] == smooth["step"].max())]
    full_rank = (kept["step"] <= run["training.warm_start"]) | (run["method"] == "full")
    trained = full_rank.map({True: run["parameters"], False: run["trained"]})
    return kept.assign(label=run["label"], run=run["run"], trained=trained.astype(float))


def over_seeds(found: pd.DataFrame) -> pd.DataFrame:
    """label, step, loss (mean over the runs of a label), low and high (their range), n, of label, run, step and loss.

    Steps that a run passed without a value are left out, so that no mean jumps to where one run ended.
    """
    frames = []
    for label, rows in found.dropna(subset="loss").groupby("label", observed=True):
        by_run = rows.pivot_table(index="step", columns="run", values="loss", aggfunc="last")
        passed = (by_run.isna() & by_run.bfill().notna()).any(axis=1)
        told = by_run[~passed].agg(["mean", "min", "max", "count"], axis=1)
        told = told.set_axis(["loss", "low", "high", "n"], axis=1).astype({"n": int})
        frames.append(told.reset_index().assign(label=label))
    columns = ["label", "step", "loss", "low", "high", "n"]
    nothing = pd.DataFrame(columns=columns).astype({"step": float})
    return pd.concat(frames, ignore_index=True)[columns] if frames else nothing


def end_of(rows: pd.DataFrame, frame: pd.DataFrame) -> str:
    """The last value of a label; and, where others of the frame or some of its seeds got further, where that is."""
    last = rows.iloc[-1]
    where = f"update {last['step']:.0f}" if last["step"] < frame["step"].max() else ""
    seeds = f"{last['n']} of {rows['n'].max()} seeds" if last["n"] < rows["n"].max() else ""
    about = ", ".join(filter(None, (where, seeds)))
    return f"{last['loss']:.3f}" + (f" ({about})" if about else "")


def show_settled(ax: Axes, frame: pd.DataFrame) -> None:
    """Limit the losses that are shown to what matters.

    Neither the fall from chance, which would flatten all that follows, nor how far a run that ended early rose.
    """
    settled = frame[frame["step"] >= 0.05 * frame["step"].max()]
    by_label = settled.groupby("label", observed=True)
    to_the_end = by_label["step"].max() == settled["step"].max()
    low, high = settled["low"].min(), by_label["high"].quantile(0.9).where(to_the_end, by_label["high"].min()).max()
    margin = 0.05 * (high - low) or 0.05
    ax.set_ylim(low - margin, high + margin)
