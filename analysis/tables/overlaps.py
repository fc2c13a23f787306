"""Do new factors find the old subspace? Overlap of successive cycles' updates, beside chance (P1 Section 3)."""

import pandas as pd

from analysis.cycles import of_runs
from analysis.load import require_comparable
from analysis.statistics import standard_error

ORDER = 7
OPTIONAL = True
NOTE = (
    "overlap: mean cos² of the principal angles between the subspaces of a cycle's update and of the next one's (1: "
    "one lies in the other), mean over matrices and pairs, ± standard error over seeds; out: column spaces (of B), "
    "in: row spaces (of A). energy: share of the next update's ‖·‖² that lies in the subspace of the one before. "
    "chance: what each would be if one of the subspaces were random. pairs: of successive updates, in a run."
)
MEASURES = {"overlap": "chance", "energy": "energy_chance"}


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a label with two or more factored cycles: n runs, pairs, overlap, energy and chance of both sides."""
    require_comparable(runs)
    found = of_runs(runs)
    rows = []
    for label, group in found.groupby("label", observed=True):
        pairs = group.groupby("run")["cycle"].nunique()
        row = {"label": label, "n": len(pairs), "pairs": int(pairs.max())}
        for measure, chance in MEASURES.items():
            for side, mine in group.groupby("side", observed=True):
                by_run = mine.groupby("run")[[measure, chance]].mean()
                row |= {f"{measure}_{side}": float(by_run[measure].mean())}
                row |= {f"{measure}_{side}_error": standard_error(by_run[measure].dropna())}
                row |= {f"{chance}_{side}": float(by_run[chance].mean())}
        rows.append(row)
    return pd.DataFrame(rows)
