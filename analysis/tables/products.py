"""Values below 0.1 as P1 counts them (P1 Figures 4 and 12)."""

import math

import pandas as pd

from analysis import paper, products
from analysis.counts import count_singular_values
from analysis.load import require_comparable

ORDER = 17
OPTIONAL = True
PRINTED = [("P1", "Figure 12")]
THRESHOLD = 0.1
ROLES = ["q", "k", "v", "up", "down"]  # that P1 draws
OF_PAPER = 12 * 768  # values that P1 counts a role: layers, and the width of its 130M model
NOTE = (
    "below: singular values < 0.1 a layer, the floor of the mean over layers and the n seeds, as P1 draws it; total: "
    "how many a layer has. values of: s·B·A of low-rank networks from scratch, which are P1's LoRA, and else ΔW. P1 "
    "columns: its 130M models (public notebook behind Figure 12), 768 values a layer. The caption of P1's Figure 4 "
    "says > 0.1 where its text and Figure 12 say < 0.1."
)


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a label and role: n, total, below and its share, P1's count and share. Empty without P1's LoRA."""
    require_comparable(runs)
    found = products.of_runs(runs)
    if found.empty:
        return pd.DataFrame()
    counts = count_singular_values(found[found["role"].isin(ROLES)], THRESHOLD).dropna(subset="below")
    first = runs.drop_duplicates("label").set_index("label")
    printed = paper.numbers().query("paper == 'P1' and table == 'Figure 12'").set_index(["row", "column"])["value"]
    rows = []
    for (label, product, role), group in counts.groupby(["label", "product", "role"], observed=True):
        below, total = group["below"].mean(), group["total"].mean()
        of_paper = printed.get((paper.row_of(first.loc[label]), role), math.nan)
        rows.append(
            {
                "label": label,
                "values of": "s·B·A" if product else "ΔW",
                "role": role,
                "n": group["run"].nunique(),
                "total": math.floor(total),
                "below": math.floor(below),
                "below_percent": 100 * below / total,
                "P1_below": math.floor(of_paper / 12) if of_paper == of_paper else pd.NA,
                "P1_below_percent": 100 * of_paper / OF_PAPER,
            }
        )
    if not rows:
        return pd.DataFrame()
    rows.sort(key=lambda row: (list(runs["label"].cat.categories).index(row["label"]), ROLES.index(row["role"])))
    return pd.DataFrame(rows).astype({"P1_below": "Int64"})
