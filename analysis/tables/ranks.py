"""What rank the updates really had: numerical rank of ΔW, and the most it could be."""

import pandas as pd

from analysis.counts import of_runs
from analysis.load import require_comparable

ORDER = 4
NOTE = (
    "ΔW = W at the end − W at the reference step, of merged weights; ranges run over the matrices and seeds. "
    "ceiling: the sum of the ranks of the factor pairs that made ΔW (for full-rank methods the smaller side). "
    "rank: singular values above what float32 rounding explains. below, above: of all singular values of a run, "
    "σ < 0.1 and σ ≥ 0.1, mean over seeds. nonfinite: matrices with NaN or Inf, which are left out."
)


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a label: n runs, reference step, matrices, rank and ceiling (ranges), counts below and above 0.1."""
    require_comparable(runs)
    rows, found = [], of_runs(runs)
    reference = runs.drop_duplicates("label").set_index("label")["training.reference_step"]
    for label, matrices in found.groupby("label", observed=True) if len(found) else ():
        matrices = matrices.astype({"below": float, "above": float})
        smaller, by_run = matrices[["rows", "cols"]].min(axis=1), matrices.groupby("run")
        rows.append(
            {
                "label": label,
                "n": by_run.ngroups,
                "reference_step": reference[label],
                "matrices": matrices["matrix"].nunique(),
                "smaller_side_low": smaller.min(),
                "smaller_side_high": smaller.max(),
                "ceiling_low": matrices["ceiling"].min(),
                "ceiling_high": matrices["ceiling"].max(),
                "rank_low": matrices["rank"].min(),
                "rank_high": matrices["rank"].max(),
                "below_0.1": float(by_run["below"].sum(min_count=1).mean()),
                "above_0.1": float(by_run["above"].sum(min_count=1).mean()),
                "nonfinite": int(matrices["rank"].isna().sum()) or None,
            }
        )
    return pd.DataFrame(rows)
