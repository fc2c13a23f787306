"""Perplexity of each method (P1 Table 2), measured and as printed."""

import pandas as pd

from analysis import paper
from analysis.statistics import summarise

ORDER = 1
PRINTED = [("P1", "Table 2"), ("P1v1", "Table 2")]
NOTE = (
    "Perplexity = exp(mean held-out loss); mean ± standard error over the n seeds that finished. The P1 columns are "
    "printed numbers, on C4 at the size above them; P1's LoRA starts from a base of zero (method low_rank)."
)


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a label: size, trained parameters, n, perplexity, loss, what did not finish, P1's numbers."""
    measured = summarise(runs, "perplexity", "loss")
    first = runs.groupby("label", observed=True).first()
    about = first.loc[measured["label"], ["size", "trained"]].reset_index(drop=True)
    about["trained"] = about["trained"].astype("Int64")
    rows = [paper.row_of(run) for _, run in first.loc[measured["label"]].iterrows()]
    printed = paper.table("P1", "Table 2").reindex(rows).reset_index(drop=True).add_prefix("P1 ")
    columns = ["n", "perplexity", "perplexity_error", "loss", "loss_error"]
    return pd.concat([measured[["label"]], about, measured[columns], printed, measured["remark"]], axis=1)
