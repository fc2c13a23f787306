"""Throughput by rank and micro-batch (P2 Table 2)."""

import pandas as pd

from analysis import paper, throughput
from analysis.load import require_comparable
from analysis.statistics import standard_error
from relora_lab.runs import RunFolder

ORDER = 16
OPTIONAL = True
PRINTED = [("P2", "Table 2")]
AS_RELORA = ("relora", "online_relora", "lora")  # (W + AB)x, whatever happens at a restart
MICRO_BATCHES = ("24", "48")  # P2's
NOTE = (
    "d/r: width of the model / rank. micro-batch: sequences that the model sees at once. examples/s: sequences a "
    "second in the phase that the method trains, the median over updates, mean ± standard error over n runs; of full "
    "rank percent: the same, of what full-rank updates reach with this micro-batch (those of the run's own warm "
    "start, else of full-rank runs alike). Several runs share a machine, so these are no benchmarks. P2 columns: "
    "printed, at this d/r with micro-batches of 24 and of 48 sequences, 350M on V100s; ReLoRA's count for LoRA too."
)


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a label of a method with a rank, or full: rank, d/r, micro-batch, n, examples a second, P2's.

    Empty unless there are two ranks or two micro-batches.
    """
    require_comparable(runs)
    ranks = runs["method.rank"] if "method.rank" in runs else pd.Series(float("nan"), runs.index)
    runs = runs.assign(rank=ranks.astype(float), micro_batch=throughput.micro_batch(runs))
    runs = runs[(runs["method"] == "full") | runs["rank"].notna()]
    if runs["rank"].nunique() < 2 and runs["micro_batch"].nunique() < 2:
        return pd.DataFrame()
    found = throughput.of_runs(runs)
    printed = paper.table("P2", "Table 2")
    rows = []
    for label, group in found.groupby("label", observed=True):
        run = runs[runs["label"] == label].iloc[0]
        width, relative = RunFolder(run["path"]).config.model.shape.hidden, group["examples"] / group["full_rank"]
        row = {"label": label, "method": run["method"], "rank": run["rank"], "d/r": width / run["rank"]}
        row |= {"micro-batch": run["micro_batch"], "n": int(group["examples"].count())}
        row |= _mean_and_error(group["examples"], "examples/s")
        row |= _mean_and_error(100 * relative, "of_full_rank_percent") if run["method"] != "full" else {}
        rows.append(row | {f"P2 examples/s at {size}": _printed(printed, row, size) for size in MICRO_BATCHES})
    return pd.DataFrame(rows).astype({"rank": "Int64"})


def _printed(printed: pd.DataFrame, row: dict[str, object], micro_batch: str) -> str | None:
    """P2's examples a second of that method, d/r and micro-batch."""
    method = "relora" if row["method"] in AS_RELORA else row["method"]
    ratio = pd.to_numeric(printed["d/r"], errors="coerce")
    same_ratio = ratio.isna() if method == "full" else ratio == row["d/r"]
    found = printed[(printed["method"] == method) & same_ratio & (printed["micro-batch"] == micro_batch)]
    return None if found.empty else str(found["examples/s"].iloc[0])


def _mean_and_error(values: pd.Series, name: str) -> dict[str, float]:
    return {name: float(values.mean()), f"{name}_error": standard_error(values.dropna())}
