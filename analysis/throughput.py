"""Examples (sequences, or a task's inputs) a second, from the logs of runs.

The trainer times each update with its optimizer step, without evaluations, norms, restarts and files. A run's lines
of what it shares with others (its warm start, often its first cycle) are those of whoever trained that.
"""

import numpy as np
import pandas as pd

from analysis import logs
from relora_lab.runs import RunFolder

WARM_UP = 10  # first updates of a phase that do not count; in a short phase a tenth of it
P1_SHARE = 0.33  # of the warm start, in P1 Table 7
# Settings beside those of the model that two runs' speeds must share to be compared.
ALIKE = {"sequence_length", "batch_size", "micro_batches", "threads", "device", "precision", "compile"}
ALIKE |= {"gradient_checkpointing"}


def of_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Examples a second of each run (rows of load_runs): the median over updates; a row a run, whatever its state.

    Columns: run, label, seed; examples, in the phase that the run's method trains; full_rank, with AdamW at full
    rank: in the run's own warm start, else the mean of the full-rank runs that are alike in model, batch and machine
    settings; share (of the updates that are warm start, 0 … 1); low_rank (has it a low-rank phase?). NaN where
    nothing has been logged.
    """
    rows = [_of_run(run) for _, run in runs.iterrows()]
    columns = ["run", "label", "seed", "examples", "full_rank", "share", "low_rank"]
    frame = pd.DataFrame(rows, columns=[*columns, "alike"]).astype({"label": runs["label"].dtype})
    full = frame[(runs["method"] == "full").to_numpy()].groupby("alike")["examples"].mean()
    others = frame["alike"].map(full).where(frame["examples"].notna())
    frame["full_rank"] = frame["full_rank"].fillna(others)
    return frame[columns]


def adjusted(full_rank: pd.Series, low_rank: pd.Series, share: pd.Series | float) -> pd.Series:
    """Examples a second over a whole run, of which a `share` is warm start: 1 / (f / full + (1 − f) / low)."""
    return 1 / (share / full_rank + (1 - share) / low_rank)


def micro_batch(runs: pd.DataFrame) -> pd.Series:
    """Sequences that the model sees at once, of each run; of several processes, those of one alone."""
    return runs["data.batch_size"] // runs["training.micro_batches"]


def _of_run(run: pd.Series) -> dict[str, object]:
    folder = RunFolder(run["path"])
    low_rank = folder.config.low_rank is not None
    begins = int(run["training.warm_start"]) if low_rank else 0
    lines = logs.read(run["path"], "metrics")
    tokens = lines["tokens"].diff().fillna(lines["tokens"])  # of each update: inputs of tasks have any length
    speed, trained = run["data.batch_size"] * lines["tokens_per_second"] / tokens, lines["step"] > begins
    full = speed[trained] if run["method"] == "full" else speed[~trained]
    settings = [value for name, value in run.items() if str(name).startswith("model.") or _field(name) in ALIKE]
    return {
        "run": run["run"],
        "label": run["label"],
        "seed": run["seed"],
        "examples": _median(speed[trained]),
        "full_rank": _median(full),
        "share": begins / run["training.steps"],
        "low_rank": low_rank,
        "alike": str(settings),
    }


def _field(name: object) -> str:
    return str(name).rpartition(".")[2]


def _median(speed: pd.Series) -> float:
    return float(np.median(speed[min(WARM_UP, len(speed) // 10) :])) if len(speed) else float("nan")
