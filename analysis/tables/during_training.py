"""Perplexity during training (P1 Table 4)."""

import pandas as pd

from analysis import logs, measures, paper
from analysis.statistics import standard_error

ORDER = 11
NOTHING = "No two steps at which every finished run was evaluated, or no run has finished."
PRINTED = [("P1", "Table 4")]
SHARES = (1 / 2, 2 / 3, 1)  # of training: P1's 15K, 20K and 30K of 30K updates


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a label: n, held-out perplexity (or score) at three steps, P1's. Empty without evaluations on the way.

    The steps are those, of all at which every finished run was evaluated, that are nearest to half, two thirds and
    all of training; columns "perplexity @STEP", "accuracy @STEP".
    """
    measure = measures.of_runs(runs)
    measured = measure.summarise(runs)
    done = runs[runs["state"] == "finished"]
    found = {
        run.run: measure.values(logs.read(run.path, "eval").astype({"step": int}).set_index("step"))[
            measure.column
        ].to_dict()
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
        columns[f"{measure.column} @{step}"] = [one.mean() for one in values]
        columns[f"{measure.column} @{step}_error"] = [standard_error(one.dropna()) for one in values]
    first = runs.groupby("label", observed=True).first().loc[measured["label"]]
    is_text = measure is measures.PERPLEXITY
    seen = first["data.batch_size"] * (first["data.sequence_length"] if is_text else 1)
    seen = seen.rename(f"{'tokens' if is_text else 'examples'}_per_update").reset_index(drop=True)
    parts = [measured[["label", "n"]], pd.DataFrame(columns), seen]
    if is_text:
        printed = paper.table("P1", "Table 4").reindex([paper.row_of(run) for _, run in first.iterrows()])
        parts += [printed.reset_index(drop=True).add_prefix("P1 ")]
    return pd.concat([*parts, measured["remark"]], axis=1)


def title(frame: pd.DataFrame) -> str | None:
    """Of a task's table; that of text has the docstring's."""
    measure = measures.of_frame(frame)
    return None if measure is measures.PERPLEXITY else f"{measure.title} during training"


def note(frame: pd.DataFrame) -> str:
    """Which steps, why and after how many tokens or examples; P1's tokens."""
    measure = measures.of_frame(frame)
    begins = f"{measure.column} @"
    steps = [int(name.removeprefix(begins)) for name in frame if name.startswith(begins) and "_" not in name]
    what = "tokens" if measure is measures.PERPLEXITY else "examples"
    seen = ", ".join(f"{step * int(frame[f'{what}_per_update'].iloc[0]):,} {what}" for step in steps)
    value = "exp(mean held-out loss)" if measure is measures.PERPLEXITY else "on held-out examples, percent"
    told = (
        f"{begins}STEP: {value}, mean ± standard error over the n seeds that finished, at the steps nearest to half, "
        "two thirds and all of training (P1: 15K, 20K and 30K updates of 30K) among those at which all finished runs "
        f"were evaluated: after {seen}."
    )
    if measure is not measures.PERPLEXITY:
        return told
    billions = paper.table("P1", "Table 4").loc["training tokens (billions)"]
    return f"{told} P1 columns: printed, 1.3B on C4, after {', '.join(billions)} billion tokens."
