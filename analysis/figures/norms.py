"""Norms across restarts: what drops, and what does not (P2 Figure 1)."""

import pandas as pd
from matplotlib.axes import Axes

from analysis import logs
from analysis.figures import TWO_COLUMNS, add_legend, by_label, handles_of, labelled, split
from relora_lab.errors import printable

ORDER = 9
SIZE = (TWO_COLUMNS, 2.1)
PANELS = {"sBA": "factors ‖sBA‖", "delta_W": "update ‖ΔW‖", "W_merged": "merged weights ‖W‖"}
MARKED = 16  # restarts that are drawn
MOMENTS = ["trace", "before", "after"]


def data(runs: pd.DataFrame) -> pd.DataFrame:
    """label, step, moment (trace; before and after a restart), norm, value: Frobenius norm of all matrices together,
    √Σ‖·‖²_F, mean over the n seeds that got so far."""
    read = [logs.read(run.path, "norms").assign(label=run.label, run=run.run) for run in runs.itertuples()]
    found = pd.concat(read, ignore_index=True).astype({"step": int})
    keys = ["label", "run", "step", "moment"]
    totals = found[list(PANELS)].pow(2).join(found[keys]).groupby(keys).sum(min_count=1).pow(0.5)
    values = totals.rename_axis(columns="norm").stack().rename("value").dropna()
    by_step = values.groupby(["label", "step", "moment", "norm"], observed=True)
    frame = by_step.agg(["mean", "count"]).set_axis(["value", "n"], axis=1).reset_index()
    frame = labelled(frame.astype({"moment": pd.CategoricalDtype(MOMENTS, ordered=True)}), runs)
    return frame.sort_values(["label", "norm", "step", "moment"], ignore_index=True)


def draw(frame: pd.DataFrame, ax: Axes) -> None:
    """A panel a norm; dotted lines where there is a restart, unless there are so many that they hide the others."""
    panels = split(ax, 1, len(PANELS))
    restarts = frame.loc[frame["moment"] == "after", "step"].unique()
    for panel, (norm, title) in zip(panels, PANELS.items(), strict=True):
        for label, rows, look in by_label(frame[frame["norm"] == norm]):
            panel.plot(rows["step"], rows["value"], label=label, **look)
        for step in restarts if len(restarts) <= MARKED else ():
            panel.axvline(step, color="0.6", linewidth=0.6, linestyle=":", zorder=0)
        panel.set_title(title)
        panel.set_xlabel("update")
        panel.set_ylim(bottom=0)
        panel.locator_params(axis="x", nbins=4)
    panels[0].set_ylabel("Frobenius norm")
    add_legend(panels[-1], handles=handles_of(panels, frame), loc="lower right")


def describe(frame: pd.DataFrame) -> str:
    """How far each norm falls at restarts."""
    across = frame[frame["moment"] != "trace"].pivot_table(
        index=["label", "step"], columns=["norm", "moment"], values="value", observed=True
    )
    if across.empty:
        return "Norms over training. No run was restarted."
    told = []
    for norm in PANELS:
        if norm in across:
            ratios = (across[norm]["after"] / across[norm]["before"]).groupby("label", observed=True).mean()
            least, most = f"{ratios.min():.1%}", f"{ratios.max():.1%}"
            told.append(f"{PANELS[norm]} is {least if least == most else f'{least} to {most}'} of what it was")
    seeds = frame.groupby("label", observed=True)["n"].agg(["min", "max"])
    fewer = [printable(str(label)) for label in seeds.index[seeds["min"] < seeds["max"]]]
    lost = (
        f" Not all seeds got to the end, so that the mean jumps where one stops: {', '.join(fewer)}." if fewer else ""
    )
    return f"Norms over training. Just after a restart, mean over the restarts of a label: {', '.join(told)}.{lost}"
