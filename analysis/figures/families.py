"""Training and held-out loss by family: low-rank methods, optimizers, the best of both (P2 Figures 2 to 9)."""

from collections.abc import Collection, Iterator

import pandas as pd
from matplotlib.axes import Axes

from analysis import measures
from analysis.figures import TWO_COLUMNS, add_legend, by_label, by_name, handles_of, labelled, split
from analysis.figures.evaluation_loss import add_curve, evaluations
from analysis.figures.loss import end_of, over_seeds, show_settled, smoothed
from analysis.tables.ablation import METHODS
from relora_lab.runs import RunFolder

ORDER = 11
OPTIONAL = True
SIZE = (TWO_COLUMNS, 3.6)
SPLITS = {"training": smoothed, "held-out": evaluations}
LOW_RANK, OPTIMIZERS, BEST = "low-rank methods", "optimizers", "best of each"


def data(runs: pd.DataFrame) -> pd.DataFrame:
    """family, split (training, smoothed as in loss; held-out), label, step, loss (mean over seeds, nats), low and
    high (the seeds' range), n.

    low-rank methods stand beside full rank and plain GaLore, optimizers beside full rank; best of each is the label
    of lowest mean final loss (highest score of a task) of either, of runs that finished, beside both baselines.
    Controls are left out. Empty where all methods are P1's.
    """
    if set(runs["method"]) <= set(METHODS):
        return pd.DataFrame()
    runs = runs[~runs["control"]]
    members = pd.DataFrame(_members(runs), columns=["family", "label"])
    curves = [
        over_seeds(pd.concat([read(run) for _, run in runs.iterrows()])).assign(split=name)
        for name, read in SPLITS.items()
    ]
    frame = members.merge(pd.concat(curves, ignore_index=True), on="label")
    families = pd.CategoricalDtype([LOW_RANK, OPTIMIZERS, BEST], ordered=True)
    frame = frame.astype({"family": families, "split": pd.CategoricalDtype([*SPLITS], ordered=True)})
    return labelled(frame[["family", "split", "label", "step", "loss", "low", "high", "n"]], runs)


def draw(frame: pd.DataFrame, ax: Axes) -> None:
    """A column a family, training loss above held-out loss."""
    families = _families(frame)
    panels = split(ax, len(SPLITS), len(families), sharex=True)
    for number, panel in enumerate(panels):
        row, column = divmod(number, len(families))
        name, family = list(SPLITS)[row], families[column]
        rows = frame[(frame["split"] == name) & (frame["family"] == family)]
        for label, mine, look in by_label(rows):
            add_curve(panel, mine, look, label)
        if len(rows):
            show_settled(panel, rows)
        panel.locator_params(axis="x", nbins=4)
        panel.set_title("" if row else family)
        panel.set_xlabel("update" if row else "")
        panel.set_ylabel("" if column else f"{name} loss (nats)")
    add_legend(panels[-1], handles=handles_of(panels, frame), below=True)


def describe(frame: pd.DataFrame) -> str:
    """Who is in which family, and where each ends on held-out text, or, without that, in training."""
    told = []
    for family in _families(frame):
        rows = frame[frame["family"] == family]
        name = "held-out" if (rows["split"] == "held-out").any() else "training"
        ends = (f"{label} {end_of(mine, frame)}" for label, mine in by_name(rows[rows["split"] == name]))
        told.append(f"{family}: {name} loss ends at {', '.join(ends)}")
    return f"Training loss (smoothed) and held-out loss, mean over seeds, in nats. {'; '.join(told)}."


def _families(frame: pd.DataFrame) -> list[str]:
    return [family for family in frame["family"].cat.categories if (frame["family"] == family).any()]


def _members(runs: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """(family, label) of all that are drawn; a family that has nothing but baselines is none."""
    first = runs.drop_duplicates("label").set_index("label")
    low_rank = [label for label, run in first.iterrows() if RunFolder(run["path"]).config.low_rank]
    full = list(first.index[first["method"] == "full"])
    optimizers = [label for label in first.index if label not in {*low_rank, *full}]
    baselines = [*full, *_plain_galore(first)]
    best = [found for found in (_best(runs, low_rank), _best(runs, optimizers)) if found]
    for family, own, beside in (
        (LOW_RANK, low_rank, baselines),
        (OPTIMIZERS, optimizers, full),
        (BEST, best, baselines),
    ):
        yield from ((family, str(label)) for label in dict.fromkeys([*own, *beside]) if own)


def _plain_galore(first: pd.DataFrame) -> list[str]:
    """GaLore without what P2 adds to it."""
    added = first.reindex(columns=["method.dynamic", "method.error_feedback"]).fillna(0).astype(bool).any(axis=1)
    return list(first.index[(first["method"] == "galore") & ~added])


def _best(runs: pd.DataFrame, labels: Collection[str]) -> str | None:
    """Of these labels that of the lowest mean final loss, or highest score; None where no run of theirs finished."""
    return measures.of_runs(runs).best_label(runs[runs["label"].isin(labels)])
