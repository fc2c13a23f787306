"""Perplexity by method and size (P1 Table 2)."""

import pandas as pd

from analysis import paper
from analysis.load import by_size, require_comparable
from analysis.statistics import summarise

ORDER = 0
OPTIONAL = True
ACROSS_SIZES = True
NOTE = (
    "Mean ± standard error over the seeds that finished; runs of one size saw as many tokens, those of another may "
    "not have. A control stands with the size whose control it is. P1: printed numbers, on C4."
)


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a label: its perplexity at each size, and P1's where the size is one of the paper's.

    Empty if all runs are of one size; those of tasks are in the table glue. Raises BadInput if those of one size are
    not comparable.
    """
    runs = runs[runs["task"].isna()] if "task" in runs else runs
    if runs.empty:
        return pd.DataFrame()
    sizes = by_size(runs)
    for mine in sizes.values():
        require_comparable(mine)
    if len(sizes) == 1:
        return pd.DataFrame()
    printed = paper.table("P1", "Table 2")
    columns: dict[str, pd.Series] = {}
    rows: dict[str, str | None] = {}
    for size, mine in sizes.items():
        measured = summarise(mine, "perplexity").set_index("label")
        columns |= {size: measured["perplexity"], f"{size}_error": measured["perplexity_error"]}
        first = mine.drop_duplicates("label").set_index("label")
        rows |= {str(label): paper.row_of(run) for label, run in first.iterrows()}
    frame = pd.DataFrame({name: column.rename(str) for name, column in columns.items()}).reindex(list(rows))
    for size in sizes:
        if size in printed:
            frame[f"P1 {size}"] = [printed[size].get(row) for row in rows.values()]
    return frame.rename_axis("label").reset_index()
