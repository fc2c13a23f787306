"""What a restart does: jump of the held-out loss, and orphans (in none of the papers)."""

import math

import pandas as pd
from matplotlib.axes import Axes

from analysis.figures import TWO_COLUMNS, add_band, add_legend, by_label, by_name, handles_of, labelled, split
from relora_lab.runs import RunFolder

ORDER = 13
OPTIONAL = True
SIZE = (TWO_COLUMNS, 2.1)
PANELS = {  # title, and what is counted
    "function_jump": ("held-out loss after a restart less before", "nats"),
    "orphans": ("left with a first moment alone", "weights"),
}
LEAST = {"function_jump": 1e-3, "orphans": 10.0}  # that a logarithmic scale tells from 0
SPREAD = 30  # between the smallest and the largest that a linear scale shows


def data(runs: pd.DataFrame) -> pd.DataFrame:
    """label, measure, step, value (mean over seeds), low and high (their range), n, of every restart.

    function_jump: loss of one fixed held-out batch after the restart less before, nats; orphans: weights whose first
    Adam moment is left and whose second is not. Merges between restarts (online_relora) are none.
    """
    found = pd.DataFrame([fact for _, run in runs.iterrows() for fact in _of_run(run)])
    if found.empty:
        return found
    by_step = (
        found.astype({"value": float})
        .dropna(subset="value")
        .groupby(["label", "measure", "step"], observed=True)["value"]
    )
    frame = by_step.agg(["mean", "min", "max", "count"]).set_axis(["value", "low", "high", "n"], axis=1)
    return labelled(frame.reset_index(), runs)


def draw(frame: pd.DataFrame, ax: Axes) -> None:
    """A panel a measure; a band where there are several seeds."""
    panels = split(ax, 1, len(PANELS))
    for panel, (measure, (title, unit)) in zip(panels, PANELS.items(), strict=True):
        rows = frame[frame["measure"] == measure]
        for label, mine, look in by_label(rows):
            panel.plot(mine["step"], mine["value"], label=label, marker="o", markersize=3, **look)
            add_band(panel, mine, look)
        _scale(panel, rows[["low", "high"]].stack(), LEAST[measure])
        panel.set_title(title)
        panel.set_xlabel("update")
        panel.set_ylabel(unit)
        panel.set_xlim(left=0)
        panel.locator_params(axis="x", nbins=5)
    add_legend(panels[-1], handles=handles_of(panels, frame), below=True)


def describe(frame: pd.DataFrame) -> str:
    """The largest of both that a restart of each label did."""
    told = []
    for label, rows in by_name(frame):
        jumps, orphans = (rows[rows["measure"] == measure] for measure in PANELS)
        jump = max(jumps["low"].min(), jumps["high"].max(), key=abs) if len(jumps) else float("nan")
        restarts = f"{jumps['step'].nunique()} restarts"
        told.append(f"{label} {jump:+.3g} nats and {orphans['high'].max():.0f} orphans ({restarts})")
    return (
        "Left: how much the loss of one held-out batch jumps at each restart; right: weights whose first Adam moment "
        f"a reset left without a second. The largest of a restart: {'; '.join(told)}."
    )


def _of_run(run: pd.Series) -> list[dict[str, object]]:
    restarts = [facts for facts in RunFolder(run["path"]).cycle_facts() if facts.get("event") == "restart"]
    about = {"label": run["label"]}
    return [
        {**about, "measure": measure, "step": facts["end"], "value": facts.get(measure)}
        for facts in restarts
        for measure in PANELS
    ]


def _scale(panel: Axes, values: pd.Series, least: float) -> None:
    """A scale on which 0 can be read, and the smallest of the values that are at least so large, and the largest."""
    sizes = values.abs()[values.abs() >= least]
    if sizes.empty:
        panel.set_ylim(-least if values.min() < -least / 10 else -least / 10, least)
    elif sizes.max() > SPREAD * sizes.min():
        panel.set_yscale("symlog", linthresh=10.0 ** math.floor(math.log10(sizes.min())))
