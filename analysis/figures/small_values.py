"""How many singular values of ΔW are below 0.1, by projection, and how many have to be (P1 Figures 4 and 12)."""

import pandas as pd
from matplotlib.axes import Axes

from analysis.counts import of_runs
from analysis.figures import CROWD, ONE_COLUMN, add_legend, by_label, by_name, labelled, make_higher, of_role
from analysis.naming import role_key

ORDER = 5
SIZE = (ONE_COLUMN, 2.4)
THRESHOLD = 0.1
LETTERS = 40  # of all roles, that fit beside each other


def data(runs: pd.DataFrame) -> pd.DataFrame:
    """label, role, below, above, total, at_least: counts a layer, mean over layers and seeds.

    `at_least` are the values that are zero whatever is learned: the smaller side less the rank ceiling.
    """
    found = of_runs(runs, THRESHOLD)
    counted = found.dropna(subset="below") if len(found) else found
    if counted.empty:
        return pd.DataFrame()
    counted = counted.assign(at_least=counted["total"] - counted["ceiling"])
    by = counted.groupby(["label", "role"], observed=True)[["below", "above", "total", "at_least"]]
    frame = labelled(by.mean().reset_index(), runs)
    return frame.sort_values(["label", "role"], key=_in_order, ignore_index=True)


def draw(frame: pd.DataFrame, ax: Axes) -> None:
    """Bars of what is below, a tick on each at what must be."""
    roles = sorted(set(frame["role"]), key=role_key)
    groups = list(by_label(frame))
    width = 0.8 / len(groups)
    for number, (label, rows, look) in enumerate(groups):
        left = [roles.index(role) + (number - (len(groups) - 1) / 2) * width for role in rows["role"]]
        ax.bar(left, rows["below"].astype(float), width, color=look["color"], label=label)
        ends = [x - width / 2 for x in left], [x + width / 2 for x in left]
        ax.hlines(rows["at_least"].astype(float), *ends, color="black", linewidth=1.2)
    ax.plot([], [], color="black", linewidth=1.2, label="zero by the rank ceiling")
    names = list(map(of_role, roles))
    upright = sum(map(len, names)) > LETTERS
    ax.set_xticks(range(len(roles)), names, rotation=90 if upright else 0)
    if upright:
        make_higher(ax, SIZE[1] + 0.06 * max(map(len, names)))
    legend_rows = -(-(len(groups) + 1) // 2) if len(groups) < CROWD else 0
    ax.set_ylim(0, (1.05 + 0.16 * legend_rows) * frame["total"].max())
    ax.grid(axis="x", visible=False)
    ax.set_ylabel(f"singular values < {THRESHOLD} a matrix")
    add_legend(ax, ncols=2, loc="upper center", columnspacing=1.0)


def describe(frame: pd.DataFrame) -> str:
    """Shares over all projections."""
    told = []
    for label, rows in by_name(frame):
        below, total = rows["below"].sum(), rows["total"].sum()
        told.append(f"{label} {below / total:.0%} (at least {rows['at_least'].sum() / total:.0%})")
    return (
        f"Singular values below {THRESHOLD}, mean a matrix. Of all of them: {', '.join(told)}. "
        "The black line is what the rank ceiling alone makes zero."
    )


def _in_order(column: pd.Series) -> pd.Series:
    return column.map(role_key) if column.name == "role" else column
