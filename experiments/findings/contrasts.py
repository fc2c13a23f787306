"""Claims of held-out loss: contrasts with their 95 % intervals."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.figures import TWO_COLUMNS, add_legend, make_higher
from experiments.findings import quotes
from experiments.findings.verdicts import DOES_NOT, SHOWS, UNTOLD, Claim

SIZE = (TWO_COLUMNS, 1.0)
ROW = 0.21  # inches
COLOURS = {SHOWS: "#0072B2", DOES_NOT: "#D55E00", UNTOLD: "#8C8C8C"}
MARKERS = {SHOWS: "o", DOES_NOT: "X", UNTOLD: "d"}
LINEAR = 0.02  # nats about 0 that the axis shows as they are
TICKS = (-0.5, -0.1, -0.02, -0.01, 0, 0.01, 0.02, 0.1, 0.5)


def of_loss(claims: Sequence[Claim], verdicts: pd.DataFrame) -> pd.DataFrame:
    """A row a claim of held-out loss: title, paper, mean, low, high, margin, expect, n, verdict."""
    titles = pd.DataFrame({"claim": [c.id for c in claims], "title": [c.title for c in claims]})
    titles["paper"] = [claim.paper for claim in claims]
    found = titles.merge(verdicts, on="claim")
    return found[(found["value"] == "loss") & (found["n"] > 0)].reset_index(drop=True)


def draw(frame: pd.DataFrame, ax: Axes) -> None:
    """A row a claim; its margin, where it is one of sameness, as a band."""
    make_higher(ax, 0.7 + ROW * len(frame))
    ax.axvline(0, color="black", linewidth=0.8)
    for row, found in frame.iterrows():
        colour, marker = COLOURS[found["verdict"]], MARKERS[found["verdict"]]
        if found["expect"] == "same":
            ax.barh(row, 2 * found["margin"], left=-found["margin"], height=0.7, color="0.9", zorder=0)
        ax.plot([found["low"], found["high"]], [row, row], color=colour, linewidth=1.6, solid_capstyle="butt")
        ax.plot(found["mean"], row, color=colour, marker=marker, markersize=4.5, linestyle="none")
    ax.set_xscale("symlog", linthresh=LINEAR)
    ax.set_xticks(TICKS, [quotes.number(tick, 2) if tick else "0" for tick in TICKS])
    ax.set_yticks(range(len(frame)), [f"{row.title} ({row.paper})" for row in frame.itertuples()])
    ax.set_ylim(len(frame) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("contrast of held-out loss (nats)")
    handles = [
        Line2D([], [], color=colour, marker=MARKERS[verdict], linewidth=1.6, label=verdict)
        for verdict, colour in COLOURS.items()
    ]
    add_legend(ax, handles=handles, below=True)


def describe(frame: pd.DataFrame) -> str:
    """Every contrast in words."""
    told = (f"{row.title} ({row.contrast}): {row.mean:.4f}, {row.verdict}" for row in frame.itertuples())
    return "Mean and 95 % t interval; grey: the margin of a claim of sameness. " + "; ".join(told) + "."
