"""Perplexity of each method (P1 Table 2), measured and as printed."""

import pandas as pd

from analysis import measures, paper
from relora_lab import tasks

ORDER = 1
PRINTED = [("P1", "Table 2"), ("P1v1", "Table 2")]
NOTE = (
    "Perplexity = exp(mean held-out loss); mean ± standard error over the n seeds that finished. The P1 columns are "
    "printed numbers, on C4 at the size above them; P1's LoRA starts from a base of zero (method low_rank)."
)
OF_TASK = (
    "Scores in percent, on the task's held-out examples; mean ± standard error over the n seeds that finished. "
    "loss: mean cross-entropy (nats) of the label, or of a regression the mean squared error."
)


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a label: size, trained parameters, n, perplexity, loss, what did not finish, P1's numbers; of a task its
    metrics in place of perplexity, and no numbers of P1 (the table glue has them)."""
    measure = measures.of_runs(runs)
    is_text = measure is measures.PERPLEXITY
    also = () if is_text else [measures.of_metric(name) for name in tasks.resolve(_task(runs)).metrics[1:]]
    for other in also:
        runs = other.values(runs)
    names = [measure.column, *(other.column for other in also), "loss"]
    measured = measure.summarise(runs, *names[1:])
    first = runs.groupby("label", observed=True).first()
    about = first.loc[measured["label"], ["size", "trained"]].reset_index(drop=True)
    about["trained"] = about["trained"].astype("Int64")
    columns = ["n", *(column for name in names for column in (name, f"{name}_error"))]
    parts = [measured[["label"]], about, measured[columns]]
    if is_text:
        rows = [paper.row_of(run) for _, run in first.loc[measured["label"]].iterrows()]
        parts += [paper.table("P1", "Table 2").reindex(rows).reset_index(drop=True).add_prefix("P1 ")]
    return pd.concat([*parts, measured["remark"]], axis=1)


def title(frame: pd.DataFrame) -> str | None:
    """Of a task's table; that of text has the docstring's."""
    measure = measures.of_frame(frame)
    return None if measure is measures.PERPLEXITY else f"{measure.title} of each method"


def note(frame: pd.DataFrame) -> str:
    """What the numbers are."""
    return NOTE if measures.of_frame(frame) is measures.PERPLEXITY else OF_TASK


def _task(runs: pd.DataFrame) -> str:
    return str(runs["task"].dropna().iloc[0])
