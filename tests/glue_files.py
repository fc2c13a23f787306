"""GLUE's columns in files, as tests want them."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from relora_lab import examples, tasks
from relora_lab.examples import Examples
from relora_lab.settings import Data

RTE = [
    {"sentence1": f"Number {i} is é.", "sentence2": f"It is {i % 7}.", "label": i % 2, "idx": i} for i in range(40)
]
LLAMAS = [f"{row['sentence1']}\n{row['sentence2']}" for row in RTE]  # what one reads of them, without an end
STSB = [{"sentence1": f"A {i}", "sentence2": f"B {i}", "label": i / 8, "idx": i} for i in range(41)]
MNLI = [{"premise": f"P {i}", "hypothesis": f"H {i}", "label": i % 3, "idx": i} for i in range(30)]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as a file, of the kind that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)


def opener(tmp_path: Path) -> Callable[..., Examples]:
    """A function that opens a task's examples in tmp_path/glue, made of the given rows if it is given any."""

    def opens(
        task: str = "rte", train: Any = None, held_out: Any = None, *, text_to_text: bool = False, **fields: Any
    ) -> Examples:
        for split, rows in (("train", train), ("validation", held_out)):
            if rows is not None:
                write(tmp_path / "glue" / task / f"{split}.jsonl", rows)
        data = replace(Data(dataset=str(tmp_path / "glue")), **fields)
        return examples.open_examples(tasks.resolve(task), data, tmp_path / "tokens", text_to_text=text_to_text)

    return opens


def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network; what `datasets` would keep goes to tmp_path/home."""
    for constants in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "home")


def text(part: examples.Part, index: int) -> str:
    """An input of bytes."""
    return bytes(part.tokens(index).astype(np.uint8)).decode()
