"""The states that a run can go on from: a folder each, named by its step, of which the newest is kept."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relora_lab import files, tensor_files
from relora_lab.errors import require

if TYPE_CHECKING:
    from torch import Tensor


def states(folder: Path) -> list[Path]:
    """All complete states in `folder`, the newest last."""
    return sorted((path for path in folder.glob("*") if path.name[0].isdigit()), key=_place)


def step_of(state: Path) -> int:
    """The step that a state is of."""
    return _place(state)[0]


def _place(state: Path) -> tuple[int, int]:
    """The step of a state, and how many others it had before."""
    step, _, again = state.name.partition("-")
    return int(step), int(again or 0)


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
    """Make this the newest complete state: one safetensors file a name, and `facts` as JSON."""
    folder.mkdir(exist_ok=True)
    # Another state of this step (diverged, say) does not take the first one's place, and comes after it.
    again = max((_place(state)[1] + 1 for state in states(folder) if step_of(state) == step), default=0)
    state = folder / (f"{step:09d}-{again}" if again else f"{step:09d}")
    with files.new_folder(state) as making:
        for name, named in tensors.items():
            tensor_files.write(making / f"{name}.safetensors", named)
        hashes = {path.name: files.sha256(path) for path in sorted(making.iterdir())}
        told = {"step": step, **facts, "sha256": hashes}
        files.write_json(making / "state.json", {**told, "state_sha256": _digest(told)})
    forget_older(folder)


def forget_older(folder: Path) -> None:
    """Remove all states but the newest."""
    for older in states(folder)[:-1]:
        shutil.rmtree(older)


def load(state: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors by name, and facts, of a state. Raises BadInput for a file that is damaged."""
    facts = require_undamaged(state)
    return {Path(name).stem: tensor_files.read(state / name) for name in facts["sha256"]}, facts


def require_undamaged(state: Path) -> dict[str, Any]:
    """The facts of a state. Raises BadInput, naming it, for a file of it that is not as it was written."""
    facts = files.read_json(state / "state.json")
    same = facts.pop("state_sha256", None) == _digest(facts)
    require(same, f"{state / 'state.json'}: is damaged or was changed: its sha256 is not that of what was written")
    for name, expected in facts["sha256"].items():
        files.require_sha256(state / name, expected)
    return facts


def _digest(facts: Mapping[str, Any]) -> str:
    """sha256 of the facts as JSON writes them."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
