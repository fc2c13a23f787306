"""The rank of ΔW while it grows: effective rank and small singular values of snapshots."""

import pandas as pd
from matplotlib.axes import Axes

from analysis import spectra
from analysis.counts import rank_measures
from analysis.figures import TWO_COLUMNS, add_band, add_legend, by_label, by_name, handles_of, labelled, split
from relora_lab.runs import RunFolder

ORDER = 7
OPTIONAL = True
SIZE = (TWO_COLUMNS, 2.1)
THRESHOLD = 0.1
PANELS = {"effective_rank": "effective rank of ΔW", "below": f"share of its singular values < {THRESHOLD}"}


def data(runs: pd.DataFrame) -> pd.DataFrame:
    """label, measure, step, value (mean over seeds), low and high (their range), n, of runs that kept snapshots.

    effective_rank: of ΔW up to the step, mean over matrices; below: share of all σ that are < 0.1.
    """
    kept = [run for _, run in spectra.with_weights(runs).iterrows() if RunFolder(run["path"]).snapshots]
    if not kept:
        return pd.DataFrame()
    found = pd.concat([_of_run(run) for run in kept])
    groups = found.groupby(["label", "measure", "step"], observed=True)["value"]
    frame = groups.agg(["mean", "min", "max", "count"]).set_axis(["value", "low", "high", "n"], axis=1)
    return labelled(frame.reset_index(), runs)


def draw(frame: pd.DataFrame, ax: Axes) -> None:
    """A panel a measure; a band where there are several seeds."""
    panels = split(ax, 1, len(PANELS))
    for panel, (measure, title) in zip(panels, PANELS.items(), strict=True):
        for label, rows, look in by_label(frame[frame["measure"] == measure]):
            panel.plot(rows["step"], rows["value"], label=label, marker=".", markersize=3, **look)
            add_band(panel, rows, look)
        panel.set_title(title)
        panel.set_xlabel("update")
        panel.set_ylim(bottom=0)
    panels[0].set_ylabel("mean over matrices")
    panels[1].set_ylim(top=1.02)
    add_legend(panels[-1], handles=handles_of(panels, frame), below=True)


def describe(frame: pd.DataFrame) -> str:
    """Where each line begins and ends."""
    told = []
    for label, rows in by_name(frame):
        rank, below = (rows[rows["measure"] == measure] for measure in PANELS)
        steps, ranks, shares = rank["step"].iloc[[0, -1]], rank["value"].iloc[[0, -1]], below["value"].iloc[[0, -1]]
        told.append(
            f"{label} from {ranks.iloc[0]:.1f} ({shares.iloc[0]:.0%} < {THRESHOLD}) at update {steps.iloc[0]} to "
            f"{ranks.iloc[1]:.1f} ({shares.iloc[1]:.0%}) at {steps.iloc[1]}"
        )
    return f"Effective rank of ΔW from the reference step to each snapshot and the end: {'; '.join(told)}."


def _of_run(run: pd.Series) -> pd.DataFrame:
    found = spectra.over_training(run["path"]).dropna(subset="sigma")
    ranks = rank_measures(found).groupby("step")["effective_rank"].mean()
    below = (found["sigma"] < THRESHOLD).groupby(found["step"]).mean()
    wide = pd.DataFrame({"effective_rank": ranks, "below": below}).rename_axis(columns="measure")
    return wide.stack().rename("value").reset_index().assign(label=run["label"])
