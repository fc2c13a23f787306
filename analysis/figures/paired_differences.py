"""How much better or worse than one of them: differences paired by seed, with intervals."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis import measures
from analysis.figures import TWO_COLUMNS, add_legend, by_label, labelled, make_higher, plain
from analysis.measures import Measure
from analysis.statistics import summarise
from analysis.tables import show
from analysis.tables.ablation import HOLM, comparisons, differences, reference
from relora_lab.errors import printable

ORDER = 0
OPTIONAL = True
SIZE = (TWO_COLUMNS, 1.0)
ROW, PAGE = 0.24, 8.2  # inches: of a row, and of all rows at most
LETTERS = 36  # of a label
BELOW = 0.28  # rows that the seeds, and their bootstrap, lie below mean and t interval
COLUMNS = (12, 42)  # points from the axes to the middle of n and of p
BEYOND = 0.6  # how far intervals are drawn on either side of the seeds' differences, as a share of their range
NAMES = {"difference": "mean", "interval_low": "low", "interval_high": "high"}
T: dict[str, Any] = {"linewidth": 2.0, "solid_capstyle": "butt"}
MEAN: dict[str, Any] = {"marker": "D", "markersize": 4.0, "linewidth": 2.0}
BOOTSTRAP: dict[str, Any] = {"linewidth": 0.7, "alpha": 0.6, "marker": "|", "markersize": 4.0}
SEED: dict[str, Any] = {"marker": "o", "markersize": 2.8, "markeredgewidth": 0, "alpha": 0.8, "linestyle": "none"}


def data(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a label and seed: label, less (whose loss is taken off), seed, value (the difference of held-out loss,
    nats, or of a task's score, percentage points), measure (perplexity, or that score's name); and of the label its
    mean, low and high (95 % t interval), bootstrap_low and bootstrap_high, n, p, p (Holm) and remark.

    A label that is not compared (no seed in which both finished, another size) has one row, with n = 0 and a remark
    that says why. Empty where none is. Raises BadInput for runs that are not comparable.
    """
    told, less = summarise(runs, "loss"), reference(runs)
    others = told[told["label"] != less].reset_index(drop=True)
    if less is None or others.empty:
        return pd.DataFrame()
    labels = others["label"].astype(str)
    found = differences(runs, labels, less).drop(columns="signs").rename(columns=NAMES)
    other_size = found["less"].isna()
    found = found.assign(label=labels, less=less, remark=others["remark"].mask(other_size, "another size"))
    measure = measures.of_runs(runs)
    seeds = [_of_seeds(measure, runs, label, less) for label in labels[found["mean"].notna()]]
    if not seeds:
        return pd.DataFrame()
    frame = found.merge(pd.concat(seeds), on="label", how="left")
    frame["measure"] = measure.column
    frame["n"] = frame.groupby("label")["value"].transform("count")
    ends = ["mean", "low", "high", "bootstrap_low", "bootstrap_high"]
    columns = ["label", "less", "seed", "value", "measure", *ends, "n", "p", HOLM, "remark"]
    return labelled(frame[columns].astype({"seed": "Int64"}), runs)


def draw(frame: pd.DataFrame, ax: Axes) -> None:
    """A row a label: mean and t interval, below them the seeds and their bootstrap; n and p (Holm) at the right."""
    groups = [group for group in by_label(frame, letters=LETTERS) if group[1]["n"].iloc[0]]
    make_higher(ax, 0.65 + min(ROW * len(groups), PAGE))
    ax.axvline(0, color="black", linewidth=0.8)
    left, right = _limits(frame)
    for row, (_, seeds, look) in enumerate(groups):
        about, color = seeds.iloc[0], look["color"]
        several = about["n"] > 1
        if several:
            ends = [max(about["low"], left), min(about["high"], right)]
            ax.plot(ends, [row, row], color=color, **T)
            ax.plot(about["mean"], row, color=color, **MEAN)
            ax.plot(about[["bootstrap_low", "bootstrap_high"]], 2 * [row + BELOW], color=color, **BOOTSTRAP)
            for end, marker, cut in zip(ends, "<>", (about["low"] < left, about["high"] > right), strict=True):
                if cut:
                    ax.plot(end, row, color=color, marker=marker, markersize=5)
        ax.plot(seeds["value"], len(seeds) * [row + BELOW * several], color=color, **SEED)
        _beside(ax, row, [str(about["n"]), show(about[HOLM])])
    _beside(ax, -0.6, ["n", HOLM], above=6)
    margin = 0.03 * (right - left)
    ax.set_xlim(left - margin, right + margin)
    ax.set_ylim(len(groups) - 0.4, -0.6)
    ax.set_yticks(range(len(groups)), [name for name, _, _ in groups])
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)
    measure = _measure(frame)
    side = "right" if measure.more_is_better else "left"
    ax.set_xlabel(f"{measure.what} less that of {_reference(frame)} ({measure.unit}); {side} is better")
    add_legend(ax, handles=_handles(frame), below=True)


def describe(frame: pd.DataFrame) -> str:
    """What each mark is, every mean with its interval, and who is not there."""
    drawn, missing, what = [], [], _measure(frame).what
    for label, seeds, _ in by_label(frame, letters=LETTERS):
        about = seeds.iloc[0]
        if not about["n"]:
            missing.append(f"{label} ({printable(about['remark']) or 'no seed in common'})")
            continue
        low, high = (show(about[end], 4) for end in ("low", "high"))
        more = (
            f" ({low} to {high}; n = {about['n']}; {HOLM} {show(about[HOLM])})" if about["n"] > 1 else " (one seed)"
        )
        drawn.append(f"{label} {show(about['mean'], 4)}{more}")
    marks = (
        "Diamond and bar: mean and its 95 % t interval, which an arrow continues where it is cut; thin line: 95 % "
        "percentile bootstrap interval, too narrow with few seeds; dots: the seeds."
        if frame["n"].max() > 1
        else "Dots: the one seed there is, so there are no intervals."
    )
    told = comparisons(frame.drop_duplicates("label"), "figure")
    absent = f" Left out: {', '.join(missing)}." if missing else ""
    return (
        f"{what[0].upper()}{what[1:]} less that of {_reference(frame)}, paired by seed. {marks}{told} "
        f"Mean: {'; '.join(drawn)}.{absent}"
    )


def _measure(frame: pd.DataFrame) -> Measure:
    return measures.named(str(frame["measure"].iloc[0]))


def _of_seeds(measure: Measure, runs: pd.DataFrame, label: str, less: str) -> pd.DataFrame:
    both = measure.pairs(runs, label, less)
    return (both[label] - both[less]).rename("value").rename_axis("seed").reset_index().assign(label=label)


def _beside(ax: Axes, row: float, texts: list[str], *, above: float = 0) -> None:
    """Write texts into the columns at the right of the axes, so many points above a row."""
    for points, text in zip(COLUMNS, texts, strict=True):
        at: dict[str, Any] = {
            "xytext": (points, above),
            "textcoords": "offset points",
            "ha": "center",
            "va": "center",
        }
        ax.annotate(text, (1, row), xycoords=ax.get_yaxis_transform(), fontsize=7, annotation_clip=False, **at)


def _limits(frame: pd.DataFrame) -> tuple[float, float]:
    """Where the axis begins and ends: all seeds and 0 are on it, intervals as far as would not dwarf these."""
    low, high = min(frame["value"].min(), 0.0), max(frame["value"].max(), 0.0)
    if low == high:  # all of them 0
        return -1e-3, 1e-3
    beyond = BEYOND * (high - low)
    return max(min(low, frame["low"].min()), low - beyond), min(max(high, frame["high"].max()), high + beyond)


def _handles(frame: pd.DataFrame) -> list[Line2D]:
    if frame["n"].max() == 1:
        return [Line2D([], [], color="0.3", label="one seed: no interval", **SEED)]
    kinds = {"mean, 95 % t interval": MEAN, "95 % bootstrap interval": BOOTSTRAP, "a seed": SEED}
    return [Line2D([], [], color="0.3", label=label, **kind) for label, kind in kinds.items()]


def _reference(frame: pd.DataFrame) -> str:
    """The name of the label that all are compared with, as legends have it."""
    less = str(frame["less"].iloc[0])
    labels = frame["label"].astype("category").cat.categories
    everyone = pd.DataFrame({"label": pd.Categorical(labels, labels)})
    names = {str(rows["label"].iloc[0]): name for name, rows, _ in by_label(everyone, letters=LETTERS)}
    return names.get(less, plain(less))
