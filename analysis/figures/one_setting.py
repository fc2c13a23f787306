"""What one setting does: rank, restarts, warm start (P1 Figure 13, Table 9, Section 4.1)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter

from analysis import measures, sweeps
from analysis.figures import TWO_COLUMNS, add_legend, by_label, labelled, make_higher, plain, split
from analysis.measures import Measure
from relora_lab.errors import printable

ORDER = 12
OPTIONAL = True
SIZE = (TWO_COLUMNS, 2.4)
PANELS, ROW = 4, 2  # in all, and beside each other
SPAN = 8  # a scale is logarithmic where values span so large a factor
TICKS = 8  # values that are named on the axis
LETTERS = 36  # of a recipe
COLUMNS = ["setting", "recipe", "value", "label", "n", "perplexity", "perplexity_error", "remark"]
GONE: dict[str, Any] = {"marker": "x", "markersize": 5, "linestyle": "none", "clip_on": False}


def data(runs: pd.DataFrame) -> pd.DataFrame:
    """setting, recipe, value, label, n, perplexity (held-out, mean over the n seeds that finished; of a task its
    score, percent), perplexity_error (standard error), remark: as sweeps.one_setting has them, settings of most
    values first; then, without recipe and value, the full-rank labels that do not vary in the setting. Empty where
    no setting varies alone.
    """
    measure = measures.of_runs(runs)
    columns = [name.replace("perplexity", measure.column) for name in COLUMNS]
    found = sweeps.one_setting(runs)[columns]
    if found.empty:
        return pd.DataFrame()
    values = found.groupby("setting", sort=False)["value"].nunique().sort_values(ascending=False, kind="stable")
    full = measure.summarise(runs).merge(runs.drop_duplicates("label")[["label", "method", "control"]])
    full = full[(full["method"] == "full") & ~full["control"] & (full["n"] > 0)]
    parts = []
    for setting in values.index:
        mine = found[found["setting"] == setting]
        parts += [mine, full[~full["label"].isin(mine["label"])].assign(setting=setting)]
    return labelled(pd.concat(parts, ignore_index=True)[columns], runs)


def draw(frame: pd.DataFrame, ax: Axes) -> None:
    """A panel a setting, a line a recipe; crosses at the top edge where all seeds diverged."""
    settings = _settings(frame)[:PANELS]
    columns = min(ROW, len(settings))
    rows = -(-len(settings) // columns)
    make_higher(ax, 0.4 + 1.9 * rows)
    panels = split(ax, rows, columns)
    measure = measures.of_frame(frame)
    handles: dict[tuple[str, str], Line2D] = {}
    for number, (panel, setting) in enumerate(zip(panels, settings, strict=False)):
        handles |= _draw_panel(panel, frame[frame["setting"] == setting], frame, measure)
        panel.set_xlabel(plain(setting.rpartition(".")[2].replace("_", " ")))
        panel.set_ylabel("" if number % columns else measure.shown)
    for panel in panels[len(settings) :]:
        panel.set_axis_off()
    add_legend(panels[0], handles=list(handles.values()), below=True)


def describe(frame: pd.DataFrame) -> str:
    """The best value of each recipe, what diverged, and which settings are not drawn."""
    told, measure = [], measures.of_frame(frame)
    settings = _settings(frame)
    for setting in settings[:PANELS]:
        mine = frame[frame["setting"] == setting]
        recipes = [f"{name} {_best(points, measure)}" for name, points, _ in _recipes(mine, frame)]
        full = by_label(mine[mine["recipe"].isna()])
        beside = [f"{label} {rows[measure.column].iloc[0]:.3f}" for label, rows, _ in full]
        told.append(f"{printable(setting)}: {', '.join([*recipes, *beside])}")
    others = ", ".join(map(printable, settings[PANELS:]))
    return (
        f"{measure.shown.capitalize()} by one setting, all others being the same, mean ± standard error over seeds; "
        f"horizontal: full rank. {'; '.join(told)}." + (f" Not drawn: {others}." if others else "")
    )


def _settings(frame: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(frame["setting"]))


def _recipes(rows: pd.DataFrame, frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, dict[str, Any]]]:
    """As by_label, a recipe instead of a label: its method's colour, the same look in each panel of the frame."""
    recipes = frame.dropna(subset="recipe").drop_duplicates(["recipe"])
    variants = dict(zip(recipes["recipe"], recipes.groupby("method").cumcount(), strict=True))
    rows = rows.dropna(subset="recipe")
    names = pd.CategoricalDtype(list(variants), ordered=True)
    rows = rows.assign(label=rows["recipe"].astype(names), variant=rows["recipe"].map(variants))
    return by_label(rows, letters=LETTERS)


def _draw_panel(
    panel: Axes, rows: pd.DataFrame, frame: pd.DataFrame, measure: Measure
) -> dict[tuple[str, str], Line2D]:
    """Draw one setting; a handle for each recipe, label and mark, by its kind and name."""
    handles = {}
    for name, points, look in _recipes(rows, frame):
        x, y = points["value"], points[measure.column]
        [handles["recipe", name]] = panel.plot(x, y, label=name, marker="o", markersize=3, **look)
        panel.errorbar(x, y, points[f"{measure.column}_error"], fmt="none", ecolor=look["color"])
        gone = points.loc[_diverged(points) & (points["n"] == 0), "value"]
        if len(gone):
            top = {"transform": panel.get_xaxis_transform(), **GONE}
            panel.plot(gone, len(gone) * [1], color=look["color"], **top)
            handles["mark", "diverged"] = Line2D([], [], color="0.3", label="diverged", **GONE)
    for label, full, look in by_label(rows[rows["recipe"].isna()]):
        handles["label", label] = panel.axhline(full[measure.column].iloc[0], label=label, **look)
    _scale(panel, rows, measure)
    return handles


def _diverged(points: pd.DataFrame) -> pd.Series:
    return points["remark"].str.contains("diverged")


def _scale(panel: Axes, rows: pd.DataFrame, measure: Measure) -> None:
    """Axes logarithmic where values span far, ticks at the values of the setting."""
    values = np.unique(rows["value"].dropna())
    if values[0] > 0 and values[-1] >= SPAN * values[0]:
        panel.set_xscale("log")
    if len(values) <= TICKS:
        panel.set_xticks(values, [f"{value:g}" for value in values])
        panel.set_xticks([], minor=True)
    reached = rows[measure.column].dropna()
    if len(reached) and reached.min() > 0 and reached.max() >= SPAN * reached.min():
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(LogFormatter())
        panel.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))


def _best(points: pd.DataFrame, measure: Measure) -> str:
    """The lowest perplexity or highest score, at which value of how many, and in words which diverged."""
    reached = measure.best_first(points)
    best = reached.iloc[0] if len(reached) else None
    told = "never finished" if best is None else f"is best at {best['value']:g} with {best[measure.column]:.3f}"
    lost = points[_diverged(points)]
    remarks = [f"; {value:g} {remark}" for value, remark in zip(lost["value"], lost["remark"], strict=True)]
    return f"{told} (of {len(points)} values{''.join(remarks)})"
