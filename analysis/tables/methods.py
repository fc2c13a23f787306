"""All methods, each against ReLoRA, paired by seed."""

import pandas as pd

from analysis import measures
from analysis.tables import ablation

ORDER = 3
OPTIONAL = True
NOTE = (
    "Mean ± standard error over the n seeds that finished. difference: held-out loss (nats) less that of ReLoRA (the "
    "row under less), paired by seed; interval: its 95 % t interval; bootstrap: its 95 % percentile bootstrap "
    "interval, too narrow with few seeds; signs: seeds in which it is below / above zero. trained: weights that are "
    "trained (after the warm start)."
)


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a label: method, trained weights, n, loss, perplexity (or score), difference.

    Empty if all methods are P1's.
    """
    less = ablation.reference(runs)
    if less is None or set(runs["method"]) <= set(ablation.METHODS):
        return pd.DataFrame()
    measure = measures.of_runs(runs)
    measured = measure.summarise(runs, "loss")
    columns = ["n", "loss", "loss_error", measure.column, f"{measure.column}_error", "remark"]
    first = runs.groupby("label", observed=True).first().loc[measured["label"]].reset_index(drop=True)
    compared = ablation.differences(runs, measured["label"], less)
    about = first[["method", "trained"]].astype({"trained": "Int64"})
    return pd.concat([measured[["label"]], about, measured[columns], compared], axis=1)


def note(frame: pd.DataFrame) -> str:
    """NOTE, and how many comparisons were made."""
    return measures.of_frame(frame).told(NOTE) + ablation.comparisons(frame, "table")
