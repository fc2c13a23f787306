"""Throughput and what the warm start leaves of it (P1 Table 7)."""

import pandas as pd

from analysis import throughput
from analysis.load import require_comparable
from analysis.statistics import standard_error

ORDER = 13
NOTHING = "No run with a low-rank phase, or at full rank, has logged an update."
PRINTED = [("P1", "Table 7"), ("P1v1", "Section 7")]
NOTE = (
    "Examples (sequences) a second, the median over updates; mean ± standard error over n runs, finished or not. "
    "Updates alone are timed, without evaluations and restarts, and the first ten of a phase do not count; where a "
    "process began again the log does not say, but a median hardly sees it. full rank: in a run's own warm start (if "
    "runs shared it, the speed of the one that trained it), else of full-rank runs alike. immediate percent: what "
    "the low-rank phase gains over it. adjusted: over the whole run, 1 / (f / full + (1 − f) / low) with f the share "
    "of the warm start, and total percent: what that gains; … 33: the same with P1's f = 0.33. Runs of a grid are "
    "trained several at a time and share a machine, which may have been busier in one phase than in the other: these "
    "are no benchmarks."
)
VALUES = [
    "full_rank",
    "low_rank",
    "immediate_percent",
    "adjusted",
    "total_percent",
    "adjusted_33",
    "total_percent_33",
]


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a label at full rank or of low rank: n, share of the warm start, examples a second in both phases and
    over the run, and what it gains."""
    require_comparable(runs)
    found = throughput.of_runs(runs)
    found = found[found["low_rank"] | (runs["method"] == "full").to_numpy()]
    full, low = found["full_rank"], found["examples"].where(found["low_rank"])
    over_run = throughput.adjusted(full, low, found["share"])
    as_p1 = throughput.adjusted(full, low, throughput.P1_SHARE)
    found = found.assign(low_rank=low, adjusted=over_run, adjusted_33=as_p1, immediate_percent=100 * (low / full - 1))
    found = found.assign(total_percent=100 * (over_run / full - 1), total_percent_33=100 * (as_p1 / full - 1))
    rows = []
    for label, group in found.groupby("label", observed=True):
        row = {"label": label, "n": int(group["examples"].count()), "share": group["share"].iloc[0]}
        for value in VALUES:
            row |= {value: float(group[value].mean()), f"{value}_error": standard_error(group[value].dropna())}
        rows.append(row)
    return pd.DataFrame(rows)
