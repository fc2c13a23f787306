"""Where the examples of a task come from: GLUE on the hub, local files of its columns, or the standard library."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from relora_lab import documents, snippets
from relora_lab.errors import BadInput, require
from relora_lab.settings import Data
from relora_lab.tasks import TASKS, Task

GLUE = "nyu-mll/glue"


@dataclass(frozen=True)
class Row:
    """One example: its texts in the order of the task's columns, its label, and where it is, for people."""

    texts: tuple[str, ...]
    label: float
    where: str


@dataclass(frozen=True)
class Rows:
    """Examples to be read, as often as asked for and in a fixed order, and (JSON) all that determines them."""

    identity: Any
    train: Callable[[], Iterator[Row]]
    held_out: Callable[[], Iterator[Row]]


def of(task: Task, data: Data) -> Rows:
    """The examples of a task. Local files are looked for now and read later, as datasets are loaded.

    Raises BadInput, naming dataset, split, row and column, for what is missing or is no example of the task.
    """
    if task.embedded:
        return _of_packages(task)
    name = data.dataset or GLUE
    local = Path(name).expanduser()
    if not documents.is_local(local, name):
        where = f"data.dataset: {name}" + ("" if data.dataset else " (a local copy can be named in its place)")
        on_hub = cache(lambda: documents.load(where, name, task.name))
        return _of_splits(task, f"data.dataset: {name}/{task.name}", [name], lambda _: on_hub())
    folder = local / task.name if (local / task.name).is_dir() else local
    named, facts = f"data.dataset: {folder}", documents.file_facts("data.dataset", folder)
    require(folder.is_dir(), f"{named}: is a file; give the folder with the parts 'train' and '{task.held_out}'")
    names = [name for name, *_ in facts if Path(name).parts[0] not in TASKS]  # nothing of another task's folder
    return _of_splits(task, named, facts, lambda split: _of_files(named, folder, names, split))


def _of_packages(task: Task) -> Rows:
    made = cache(lambda: snippets.of_packages(task.labels))

    def part(number: int) -> Iterator[Row]:
        for row, (text, label) in enumerate(made()[number]):
            yield Row((text,), label, f"task.name: {task.name}: row {row}")

    files = [file for own in snippets.sources(task.labels) for file in own]
    facts = [(name, *documents.size_and_time("task.name", path)) for name, path in files]
    return Rows(facts, lambda: part(0), lambda: part(1))


def _of_splits(task: Task, named: str, identity: Any, load: Callable[[str], Any]) -> Rows:
    """The rows of two splits of a dataset; `load` gives, of a name, a mapping that should have this split."""

    def part(split: str) -> Iterator[Row]:
        found = load(split)
        documents.require_split(named, found, split)
        return _rows(task, named, split, found[split])

    return Rows(identity, lambda: part("train"), lambda: part(task.held_out))


def _of_files(named: str, folder: Path, names: list[str], split: str) -> Any:
    """The split that lies in files of that name, as train.jsonl, train-00000-of-00002.parquet or train/a.json.gz."""
    kinds = {name: documents.kind_of(Path(name)) for name in names if _split_of(name)}
    files = [name for name, kind in kinds.items() if kind and _split_of(name) == split]
    there = sorted({_split_of(name) or "" for name, kind in kinds.items() if kind}) or ["no file of any"]
    hint = f"{split}.jsonl, {split}-*.parquet or files in {split}/"
    require(bool(files), f"{named}: has no split '{split}'; it has {', '.join(there)}; it may be {hint}")
    [kind, *others] = {kinds[name] for name in files}
    require(not others, f"{named}: '{split}' is in files of json and of parquet; leave one kind there")
    data_files = {split: [str(folder / name) for name in files]}
    return documents.load(f"{named}: '{split}'", str(kind), here=True, data_files=data_files)


def _split_of(name: str) -> str | None:
    """The split that a file's or its folder's name begins with or is: "mnli/validation_matched-00000-of-00001"."""
    for part in reversed(Path(name).parts):
        found = re.match(r"(train|(validation|test)(_matched|_mismatched)?)(?![A-Za-z0-9_])", part)
        if found:
            return found[1]
    return None


def _rows(task: Task, named: str, split: str, found: Any) -> Iterator[Row]:
    number, columns = 0, (*task.columns, "label")
    names = getattr((found.features or {}).get("label"), "names", task.labels)
    known = set(names) != set(task.labels) or tuple(names) == task.labels  # names of its own say nothing
    require(known, f"{named}: the labels of '{split}' are {', '.join(names)}; {task.name} has {_known(task)}")
    for batch in documents.batches(f"{named}: '{split}'", found):
        for column in columns:
            if column not in batch:
                raise BadInput(f"{named}: no column '{column}' in '{split}'; there are {', '.join(batch)}")
        for *texts, label in zip(*(batch[column] for column in columns), strict=True):
            where = f"{named}: row {number} of '{split}'"
            for column, text in zip(task.columns, texts, strict=True):
                documents.require_text(f"{where}: {column}", text)
            yield Row(tuple(texts), _label(task, label, where), where)
            number += 1
    require(number > 0, f"{named}: '{split}': has no rows")


def _label(task: Task, label: Any, where: str) -> float:
    """The label as a number. Raises BadInput for one that the task does not have."""
    number = label if isinstance(label, int | float) and not isinstance(label, bool) else None
    if task.is_regression:
        if number is not None and 0 <= number <= 5:
            return float(number)
        raise BadInput(f"{where}: label is {_shown(label)}; {task.name} has numbers from 0 to 5")
    if label in task.labels:  # its name
        return task.labels.index(label)
    if number in range(len(task.labels)):
        return int(label)
    hidden = ": it is hidden, as in GLUE's test splits" if label == -1 else ""
    raise BadInput(f"{where}: label is {_shown(label)}{hidden}; {task.name} has {_known(task)}")


def _known(task: Task) -> str:
    return ", ".join(f"{number} ({name})" for number, name in enumerate(task.labels))


def _shown(label: Any) -> str:
    return "null" if label is None else repr(label)
