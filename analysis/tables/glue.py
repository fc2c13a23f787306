"""Fine-tuning: the score of each recipe on each task (P1 Tables 3 and 8)."""

import math
from collections.abc import Iterable

import pandas as pd

from analysis import measures, paper
from analysis.load import by_size, by_size_and_task, require_comparable
from analysis.statistics import standard_error
from relora_lab.runs import RunFolder
from relora_lab.tasks import GLUE, TASKS, Task

ORDER = 0.5
OPTIONAL = True
ACROSS_SIZES = True
PRINTED = [("P1", "Table 3"), ("P1", "Table 8")]
MAJORITY = "most frequent label"
NOTE = (
    "Percent on held-out examples (MNLI: matched): mean ± standard error over the seeds that finished, n of them a "
    "task. Accuracy, of CoLA Matthews correlation, of STS-B Pearson correlation; the F1 of QQP and MRPC, and STS-B's "
    "Spearman correlation, are in each task's own table. recipe: a run's label without its task. Avg: the unweighted "
    "mean of GLUE's eight columns where all are there, its error over the seeds that have all eight. most frequent "
    "label: what answering it always scores. P1 columns: printed, where size, method and (at 350M) the pre-trained "
    "weights are P1's. P1's Avg is the mean of its columns too, recomputed here, but for two rows of T5-large: full "
    "fine-tuning gives 85.09 (printed 85.0), ReLoRA 87.13 (printed 87.47)."
)


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a size and recipe: n, its score on each task in P1's order, their mean, P1's; and the majority's.

    Empty where no run is fine-tuned. Raises BadInput, naming both runs, if those of one size and task are not
    comparable.
    """
    for mine in by_size_and_task(runs).values():
        require_comparable(mine)
    if measures.of_runs(runs) is measures.PERPLEXITY:
        return pd.DataFrame()
    runs = runs[runs["task"].notna()]
    here = [task for name, task in TASKS.items() if name in set(runs["task"])]
    rows = []
    for size, mine in by_size(runs).items():
        cells = {task.name: _cells(mine[mine["task"] == task.name]) for task in here}
        first = mine.drop_duplicates("recipe").set_index("recipe")
        rows += [
            {"size": size, "recipe": recipe, **_row({name: cell.get(recipe, {}) for name, cell in cells.items()})}
            | _printed(run, here)
            for recipe, run in first.iterrows()
        ]
    shares = {task.name: _majority(runs.loc[runs["task"] == task.name, "path"], task) for task in here}
    if any(not math.isnan(share) for share in shares.values()):
        known = {name: {0: share} for name, share in shares.items() if not math.isnan(share)}
        rows.append({"recipe": MAJORITY, **_row(known)} | dict.fromkeys(["n_low", "n_high"]))
    columns = ["size", "recipe", "n_low", "n_high"]
    columns += [column for name in [*(task.title for task in here), "Avg"] for column in (name, f"{name}_error")]
    columns += [f"P1 {name}" for name in [*(task.title for task in here if task.name in GLUE), "Avg"]]
    frame = pd.DataFrame(rows).reindex(columns=columns)
    return frame.astype({"n_low": "Int64", "n_high": "Int64"})


def _cells(runs: pd.DataFrame) -> dict[str, dict[int, float]]:
    """The score (percent) of each seed that finished, by recipe, of one task's runs; an undefined one is missing."""
    if runs.empty:
        return {}
    measure = measures.of_runs(runs)
    done = measure.values(runs[runs["state"] == "finished"]).dropna(subset=measure.column)
    return {
        str(recipe): dict(zip(mine["seed"], mine[measure.column], strict=True))
        for recipe, mine in done.groupby("recipe")
    }


def _row(cells: dict[str, dict[int, float]]) -> dict[str, float | int]:
    """n, and mean and error of each task and of all eight, from scores by task and seed."""
    counts = [len(scores) for scores in cells.values() if scores]
    row: dict[str, float | int] = {"n_low": min(counts, default=0), "n_high": max(counts, default=0)}
    for name, scores in cells.items():
        row |= _mean(TASKS[name].title, scores.values())
    scores = pd.DataFrame({name: pd.Series(cells.get(name, {}), dtype=float) for name in GLUE})
    whole = scores.dropna()
    row |= {"Avg": float(scores.mean().mean(skipna=False)), "Avg_error": standard_error(whole.mean(axis=1))}
    return row


def _mean(name: str, values: Iterable[float]) -> dict[str, float]:
    found = pd.Series(list(values), dtype=float)
    return {name: float(found.mean()), f"{name}_error": standard_error(found)}


def _printed(run: pd.Series, here: list[Task]) -> dict[str, str]:
    """P1's numbers of such a run: Table 3 has another spelling of SST-2."""
    place = paper.row_of_glue(run)
    if place is None:
        return {}
    printed = paper.table("P1", place[0]).loc[place[1]].rename({"SST2": "SST-2"})
    return {f"P1 {name}": printed[name] for name in [*(task.title for task in here if task.name in GLUE), "Avg"]}


def _majority(paths: Iterable[str], task: Task) -> float:
    """What the most frequent label scores on a task, percent; NaN where that is not known, or is no label."""
    found = (RunFolder(path).environment.get("corpus", {}).get("majority") for path in paths)
    share = next((share for share in found if isinstance(share, float)), math.nan)
    metric = task.metrics[0]
    return 100 * share if metric == "accuracy" else 0 * share if metric == "matthews" else math.nan
