"""Singular values of ΔW below and above 0.1, by projection (P1 Figures 4 and 12)."""

import pandas as pd

from analysis import paper
from analysis.counts import count_singular_values, relative_threshold
from analysis.load import require_comparable
from analysis.naming import role_key
from analysis.spectra import of_runs
from analysis.statistics import standard_error

ORDER = 5
PRINTED = [("P1", "Figure 12")]
THRESHOLD = 0.1
NOTE = (
    "Summed over layers, mean ± standard error over seeds; below is σ < τ, above σ ≥ τ, together all of them. "
    "relative τ: 0.1 × the median singular value of the full-rank runs, since an absolute 0.1 need not fit another "
    "scale. P1 below percent: its 130M models (public notebook behind Figure 12; its LoRA is sBA of a run "
    "from scratch, no ΔW)."
)


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a label and role: total, below and above 0.1, share below, P1's share, counts at the relative τ."""
    require_comparable(runs)
    spectra = of_runs(runs)
    if spectra.empty:
        return pd.DataFrame()
    relative = relative_threshold(spectra, runs)
    first = runs.groupby("label", observed=True).first()
    printed = paper.numbers().query("paper == 'P1' and table == 'Figure 12'")
    shares = printed.set_index(["row", "column"])["value"] / 9216
    counts = count_singular_values(spectra, [THRESHOLD, *relative]).dropna(subset="below")  # without non-finite ones
    rows = []
    by_run = counts.groupby(["label", "role", "threshold", "run"], observed=True)[["below", "above", "total"]].sum()
    for (label, role), group in by_run.groupby(["label", "role"], observed=True):
        absolute = group.xs(THRESHOLD, level="threshold")
        row = {"label": label, "role": role, "total": int(absolute["total"].iloc[0])}
        row |= _mean_and_error(absolute["below"], "below_0.1") | _mean_and_error(absolute["above"], "above_0.1")
        row["below_percent"] = 100 * row["below_0.1"] / row["total"]
        row["P1_below_percent"] = 100 * shares.get((paper.row_of(first.loc[label]), role), float("nan"))
        for tau in relative:
            chosen = group.xs(tau, level="threshold")
            row |= {"relative_τ": tau, **_mean_and_error(chosen["below"], "below_τ")}
        rows.append(row)
    rows.sort(key=lambda row: (list(runs["label"].cat.categories).index(row["label"]), role_key(row["role"])))
    return pd.DataFrame(rows)


def _mean_and_error(values: pd.Series, name: str) -> dict[str, float]:
    return {name: float(values.mean()), f"{name}_error": standard_error(values.astype(float))}
