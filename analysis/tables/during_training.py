"""Perplexity during training (P1 Table 4)."""

import pandas as pd

from analysis import logs, paper
from analysis.statistics import standard_error, summarise

ORDER = 11
NOTHING = "No two steps at which every finished run was evaluated, or no run has finished."
PRINTED = [("P1", "Table 4")]
SHARES = (1 / 2, 2 / 3, 1)  # of training: P1's 15K, 20K and 30K of 30K updates


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a label: n, held-out perplexity at three steps of training, P1's. Empty without evaluations on the way.

    The steps are those, of all at which every finished run was evaluated, that are nearest to half, two thirds and
    all of training; columns "perplexity @STEP".
    """
    measured = summarise(runs, "perplexity")
    done = runs[runs["state"] == "finished"]
    found = {
        run.run: logs.read(run.path, "eval").astype({"step": int}).set_index("step")["perplexity"].to_dict()
        for run in done.itertuples()
    }
    common = set.intersection(*(set(lines) for lines in found.values())) if found else set()
    if len(common) < 2:
        return pd.DataFrame()
    at = [
        min(sorted(common), key=lambda step: abs(step - share * done["training.steps"].iloc[0])) for share in SHARES
    ]
    by_label = {label: list(group["run"]) for label, group in done.groupby("label", observed=True)}
    columns = {}
    for step in dict.fromkeys(at):
        values = [
            pd.Series([found[run][step] for run in by_label.get(x, [])], dtype=float) for x in measured["label"]
        ]
        columns[f"perplexity @{step}"] = [one.mean() for one in values]
        columns[f"perplexity @{step}_error"] = [standard_error(one) for one in values]
    first = runs.groupby("label", observed=True).first().loc[measured["label"]]
    printed = paper.table("P1", "Table 4").reindex([paper.row_of(run) for _, run in first.iterrows()])
    tokens = (first["data.batch_size"] * first["data.sequence_length"]).rename("tokens_per_update")
    parts = [measured[["label", "n"]], pd.DataFrame(columns), tokens.reset_index(drop=True)]
    return pd.concat([*parts, printed.reset_index(drop=True).add_prefix("P1 "), measured["remark"]], axis=1)


def note(frame: pd.DataFrame) -> str:
    """Which steps, why and after how many tokens; P1's tokens."""
    steps = [int(name.partition("@")[2]) for name in frame if name.startswith("perplexity @") and "_" not in name]
    tokens = ", ".join(f"{step * int(frame['tokens_per_update'].iloc[0]):,} tokens" for step in steps)
    billions = paper.table("P1", "Table 4").loc["training tokens (billions)"]
    return (
        "perplexity @STEP: exp(mean held-out loss), mean ± standard error over the n seeds that finished, at the "
        "steps nearest to half, two thirds and all of training (P1: 15K, 20K and 30K updates of 30K) among those at "
        f"which all finished runs were evaluated: after {tokens}. P1 columns: printed, 1.3B on C4, after "
        f"{', '.join(billions)} billion tokens."
    )
