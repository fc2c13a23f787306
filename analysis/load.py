"""Run folders as a table: a row a run, with its settings, its status and what it reached."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from relora_lab import config, tasks
from relora_lab.errors import BadInput, require
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig
from relora_lab.workspace import run_folders

TOGGLES = {"restarts": "restarts", "reset": "reset", "jagged": "jagged", "warm_start": "warm"}  # column: in words

METRICS = list(dict.fromkeys(metric for task in tasks.TASKS.values() for metric in task.metrics))


def load_runs(path: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """The runs in a folder of run folders, or of several such folders or run folders: a row a run.

    Columns: run (folder name), label (what the run is, whatever its seed: the folder's name without "-seed0"), recipe
    (the label without its task: "lora" of "lora-cola"), seed, method, variant (which of its method's labels this is,
    from 0), size, control (is it a control size?), P1's four toggles (restarts, reset, jagged, warm_start), state,
    reason, step, steps, loss (held-out, nats), perplexity, task, score (the first of its metrics) and each metric of
    the tasks that are there (fractions), trained and parameters (counts), corpus (sha256 of the text or of the
    examples), path, and every setting as table.field. What a run has not reached yet, or has not, is missing. Labels
    are an ordered categorical: full-rank runs first, ReLoRA before LoRA, warm starts before cold ones.
    Raises BadInput, naming the folder, where there is no run or one was written by a newer version.
    """
    given = [Path(path)] if isinstance(path, str | Path) else [Path(one) for one in path]
    require(bool(given), "no runs are named; give a run folder, or a folder of them")
    folders = {folder.path.resolve(): folder for one in given for folder in _folders(one)}  # each once
    for folder in folders.values():
        text = str(folder.path).encode(errors="replace").decode()
        require(text == str(folder.path), f"{text}: the folder's name is not UTF-8; rename it")
    rows = [_row(folder) for folder in folders.values()]
    names = [row["run"] for row in rows]
    for row in rows:
        if names.count(row["run"]) > 1:  # of several folders
            row["run"] = row["path"]
    _tell_apart(rows)
    rows.sort(key=_rank)
    frame = pd.DataFrame(rows)
    frame["label"] = pd.Categorical(frame["label"], list(dict.fromkeys(frame["label"])), ordered=True)
    first = frame.drop_duplicates("label").set_index("label")
    frame["variant"] = frame["label"].map(first.groupby("method").cumcount()).astype(int)
    return frame.sort_values(["label", "seed", "run"], ignore_index=True)


def by_size(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The runs of each size, controls with the size whose controls they are; labels as if each were loaded alone."""
    sizes = runs["size"].str.removeprefix("control:").str.removesuffix("-control")
    if sizes.nunique() == 1:
        return {sizes.iloc[0]: runs}
    return {size: load_runs(mine["path"]) for size, mine in runs.groupby(sizes, sort=False)}


def by_size_and_task(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """As by_size, and the runs of each task apart: "350M", or "cola" of one size, or "t5-base-cola"."""
    sizes = by_size(runs)
    found: dict[str, pd.DataFrame] = {}
    for size, mine in sizes.items():
        named = mine["task"].fillna("") if "task" in mine else pd.Series("", mine.index)
        by_task = dict(list(mine.groupby(named, sort=False)))
        for task in sorted(by_task, key=["", *tasks.TASKS].index):
            rows = mine if len(by_task) == 1 else load_runs(by_task[task]["path"])
            apart = [size] * (len(sizes) > 1 or not task) + [task] * (len(by_task) > 1 and bool(task))
            found["-".join(map(str, apart)) or size] = rows
    return found


def require_comparable(runs: pd.DataFrame) -> None:
    """Raise BadInput unless all runs saw as many tokens of one corpus in as many steps, and were evaluated alike: or,
    of those that are fine-tuned, as many examples of one task.

    It names what differs first, both values and both runs. What a frame has no column for (those of load_runs), or
    a run not yet, is not compared; the size of the model may differ. Nor may two runs be the same configuration:
    counted twice, one would look like two.
    """
    runs = runs.reset_index(drop=True)
    if "path" in runs:
        same = runs[runs.duplicated(["label", "seed"], keep=False)].sort_values(["label", "seed"])
        twice = same["path"].tolist()
        require(not twice, f"{' and '.join(twice[:2])} are the same configuration; leave one of them out")
    names = runs["run"] if "run" in runs else runs["label"].astype(str) + ", seed " + runs["seed"].astype(str)
    for what, values in _to_be_the_same(runs).items():
        known = values[values.notna()]
        if known.nunique() > 1:
            first = known.iloc[0]
            other = known[known != first].index[0]
            raise BadInput(
                f"rows are not comparable: {what} {first} ({names[known.index[0]]}) vs {known[other]} "
                f"({names[other]}); name the runs to compare one by one"
            )


def _to_be_the_same(runs: pd.DataFrame) -> dict[str, pd.Series]:
    """What comparable runs have in common, a value a run; missing where it is not known."""
    if "task" in runs and runs["task"].notna().any():
        return _of_tasks(runs)
    training = ["training.steps", "data.batch_size", "data.sequence_length", "training.eval_tokens"]
    known = runs.reindex(columns=["corpus", "data.tokenizer", "data.vocab_size", *training]).convert_dtypes()
    corpus = known["corpus"].map(lambda sha256: sha256[:8], na_action="ignore")
    text = {"tokenizer": known["data.tokenizer"], "vocabulary": known["data.vocab_size"], "corpus": corpus}
    if corpus.notna().all() and corpus.nunique() == 1:
        text = {}  # the hash is of the tokens: whatever its name or folder is, the tokenizer is the same too
    steps, batch, length, evaluated = (known[name] for name in training)
    tokens = steps * batch * length
    return {**text, "sequence length": length, "tokens": tokens, "steps": steps, "evaluation tokens": evaluated}


def _of_tasks(runs: pd.DataFrame) -> dict[str, pd.Series]:
    settings = ["training.steps", "data.batch_size", "data.sequence_length", "task.eval_examples"]
    known = runs.reindex(columns=["task", "corpus", *settings]).convert_dtypes()
    steps, batch, length, evaluated = (known[name] for name in settings)
    return {
        "the task": known["task"].astype(object).fillna("none, but text,"),
        "the examples": known["corpus"].map(lambda sha256: sha256[:8], na_action="ignore"),
        "sequence length": length,
        "examples seen": steps * batch,
        "steps": steps,
        "evaluation examples": evaluated.astype(object).fillna("all"),
    }


def _folders(path: Path) -> list[RunFolder]:
    return [RunFolder(path)] if RunFolder(path).started else run_folders(path)


def _row(folder: RunFolder) -> dict[str, Any]:
    if folder.ended:
        folder.require_undamaged(*(log.name for log in folder.path.glob("*.jsonl")))
    settings, status, environment = folder.config, folder.status, folder.environment
    final, parameters = folder.final_evaluation or {}, environment.get("parameters", {})
    method = settings.low_rank
    every = method.restart_every if method else None
    acts = bool(every and every < settings.low_rank_steps)
    task = settings.task.name if settings.task else None
    label = _unseeded(folder.path.name, settings)
    return {
        "run": folder.path.name,
        "label": label,
        "recipe": "-".join(part for part in label.split("-") if part != task) or settings.method_name,
        "seed": settings.training.seed,
        "method": settings.method_name,
        "size": settings.model.size,
        "control": settings.model.size.startswith("control:") or settings.model.size.endswith("-control"),
        "restarts": bool(method and method.merges and acts),
        "reset": bool(method and method.optimizer_reset != "none" and acts),
        "jagged": bool(method and method.jagged and acts),
        "warm_start": bool(method and settings.training.warm_start > 0),
        "state": folder.state,
        "reason": status.get("reason"),
        "step": status.get("step", 0),
        "steps": settings.training.steps,
        "loss": final.get("loss"),
        "perplexity": final.get("perplexity"),
        "task": task,
        "score": final.get("score"),
        **{metric: final.get(metric) for metric in (tasks.resolve(task).metrics if task else ())},
        "trained": parameters.get("trained"),
        "parameters": parameters.get("total"),
        "corpus": environment.get("corpus", {}).get("text_sha256"),
        "path": str(folder.path),
        "cell": config.digest(_without_seed(settings)),
        **_flat(settings),
    }


def _without_seed(settings: RunConfig) -> RunConfig:
    return replace(settings, name=None, training=replace(settings.training, seed=0))


def _flat(settings: RunConfig) -> dict[str, Any]:
    tables = {name: part for name, part in config.as_table(settings).items() if isinstance(part, dict)}
    flat = {f"{table}.{name}": value for table, part in tables.items() for name, value in part.items()}
    return {name: str(value) if isinstance(value, list) else value for name, value in flat.items()}


def _tell_apart(rows: list[dict[str, Any]]) -> None:
    """Give labels that two kinds of run share, and recipes that two kinds of run of one task share, a digest of the
    settings: of all, and of all but the task."""
    cells: dict[str, set[str]] = {}
    kinds: dict[tuple[str, str, str | None], set[str]] = {}
    for row in rows:
        cells.setdefault(row["label"], set()).add(row["cell"])
        kinds.setdefault((row["recipe"], row["size"], row["task"]), set()).add(row["cell"])
    several = {recipe for (recipe, _, _), found in kinds.items() if len(found) > 1}
    for row in rows:
        if len(cells[row["label"]]) > 1:
            row["label"] += f"-{row['cell']}"
        if row["task"] is None:
            row["recipe"] = row["label"]
        elif row["recipe"] in several:
            settings = {name: str(row[name]) for name in row if "." in name and not name.startswith("task.")}
            settings |= {"training.seed": "0"}
            row["recipe"] += f"-{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]}"


def _unseeded(name: str, settings: RunConfig) -> str:
    """The folder's name without its seed; method and task where the name is the trainer's own."""
    if not name.startswith(f"{config.name_before_seed(settings)}-{settings.training.seed}-"):
        return name.removesuffix(f"-seed{settings.training.seed}")
    warm = ["warm"] * (settings.method_name == "lora" and settings.training.warm_start > 0)
    return "-".join([settings.method_name, *warm, *([settings.task.name] if settings.task else [])])


def _rank(row: dict[str, Any]) -> tuple[Any, ...]:
    full = row["method"] == "full"
    return (not full, row["control"], not row["restarts"], not row["warm_start"], row["label"])
