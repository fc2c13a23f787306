"""The states that a run can go on from: a folder each, named by its step, of which the newest is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relora_lab import files
from relora_lab.errors import require

if TYPE_CHECKING:
    from torch import Tensor


def states(folder: Path) -> list[Path]:
    """All complete states in `folder`, the newest last."""
    return sorted(path for path in folder.glob("*") if path.name[0].isdigit())


def step_of(state: Path) -> int:
    """The step that a state is of."""
    return int(state.name.partition("-")[0])


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
    """Make this the newest complete state: one safetensors file a name, and `facts` as JSON."""
    folder.mkdir(exist_ok=True)
    state, again = folder / f"{step:09d}", 0
    while state.exists():  # another state of this step (diverged, say) does not take the first one's place
        again += 1
        state = state.with_name(f"{step:09d}-{again}")
    with files.new_folder(state) as making:
        for name, named in tensors.items():
            files.write_tensors(making / f"{name}.safetensors", named)
        hashes = {path.name: files.sha256(path) for path in sorted(making.iterdir())}
        files.write_json(making / "state.json", {"step": step, **facts, "sha256": hashes})
    for older in states(folder):
        if older != state:
            shutil.rmtree(older)


def load(state: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors by name, and facts, of a state. Raises BadInput for a file that is damaged."""
    from safetensors.torch import load_file

    facts = json.loads((state / "state.json").read_text())
    for name, expected in facts["sha256"].items():
        require(files.sha256(state / name) == expected, f"{state / name}: is damaged (sha256 differs)")
    return {path.stem: load_file(path) for path in state.glob("*.safetensors")}, facts
