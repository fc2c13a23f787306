"""A cycle's change of the merged weights on disk: signed factor pairs (safetensors), and what happened (JSON)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from relora_lab import files, tensor_files
from relora_lab.logs import json_value

if TYPE_CHECKING:
    from torch import Tensor

Pair = tuple["Tensor", "Tensor", float]  # B (out, r), A (r, in), sign × scale


def paths(folder: Path, cycle: int) -> tuple[Path, Path]:
    """Where the factor pairs of a cycle are, and its facts."""
    pairs = folder / f"{cycle:04d}.safetensors"
    return pairs, pairs.with_suffix(".json")


def write(folder: Path, cycle: int, pairs: Mapping[str, list[Pair]], facts: Mapping[str, Any]) -> None:
    """Store factor pairs by matrix, and the facts with the pairs' scales."""
    folder.mkdir(exist_ok=True)
    tensors: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    for matrix, found in pairs.items():
        for number, (B, A, scale) in enumerate(found):
            tensors |= {f"{matrix}.{number}.B": B, f"{matrix}.{number}.A": A}
            scales[f"{matrix}.{number}"] = scale
    of_pairs, of_facts = paths(folder, cycle)
    tensor_files.write(of_pairs, tensors)
    files.write_json(of_facts, {name: json_value(fact) for name, fact in facts.items()} | {"scales": scales})


def facts(folder: Path) -> list[dict[str, Any]]:
    """What happened at the end of each cycle; "scales" has a key a factor pair."""
    return [files.read_json(path) for path in sorted(folder.glob("*.json"))]


def matrices(cycles: list[dict[str, Any]]) -> list[str]:
    """Names of the matrices of which `cycles` (from facts) hold factor pairs."""
    return list(dict.fromkeys(key.rpartition(".")[0] for facts in cycles for key in facts["scales"]))


def pairs(folder: Path, matrix: str, cycles: list[dict[str, Any]]) -> Iterator[Pair]:
    """Signed factor pairs of one matrix over `cycles` (from facts), one at a time from the files."""
    for facts in cycles:
        with safe_open(paths(folder, facts["cycle"])[0], "pt") as file:
            for key, scale in facts["scales"].items():
                if key.rpartition(".")[0] == matrix:
                    yield file.get_tensor(f"{key}.B"), file.get_tensor(f"{key}.A"), scale
