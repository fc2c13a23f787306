"""The tensors of a checkpoint by name, none of them read yet.

A checkpoint is a run folder, a Hugging Face folder (one safetensors file or several shards), a safetensors file, or
the name of a model on the Hugging Face hub. Pickles are never opened. PEFT adapters are read in factors.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from analysis import cache
from relora_lab import files, tensor_files
from relora_lab.errors import BadInput, require
from relora_lab.model_files import locate, shards
from relora_lab.runs import RunFolder

# How far rounding to a dtype moves an entry, relative to the entries' rms (see counts.numerical_ranks):
# u of float32 is its unit roundoff; of the 16-bit ones half of it, just above the noise that was measured.
ROUNDING = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-12, "BF16": 2.0**-9}


@dataclass(frozen=True)
class Stored:
    """A tensor as its file's header tells it, or a matrix of it; `shape` is that of what `read` gives.

    `part` is the matrix's place in a 3-D tensor; `transposed` says that (in, out) is stored.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    part: int | None = None
    transposed: bool = False

    def read(self) -> Tensor:
        """The tensor. The file is opened for it alone: a handle that stays open keeps all it has read."""
        with safe_open(self.file, "pt") as file:
            found = file.get_tensor(self.name) if self.part is None else file.get_slice(self.name)[self.part]
        return found.T if self.transposed else found

    def matrix(self, *, part: int | None = None, transposed: bool = False) -> "Stored":
        """The tensor as (out, in), or its matrix number `part`."""
        shape = self.shape if part is None else self.shape[1:]
        return replace(self, shape=shape[::-1] if transposed else shape, part=part, transposed=transposed)


@dataclass(frozen=True)
class Checkpoint:
    """A model's tensors by name, and what else its folder tells.

    `config` is its config.json (empty without one). `shared` has, for a tensor that is stored under another's name
    too, that name: safetensors.torch.save_model notes it in the file.
    """

    path: Path
    tensors: dict[str, Stored]
    config: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    run: RunFolder | None = None


def open_checkpoint(path: str | Path, which: str = "final") -> Checkpoint:
    """Read the headers of a checkpoint; of a run folder that of `which` ("warm_start" or "final").

    Raises BadInput, naming the file, for what is missing, a pickle, or no safetensors, and for a quantised model,
    whose weights cannot be subtracted; for weights and cycles of a run that are not as the trainer left them.
    """
    path = locate(path)
    run = RunFolder(path)
    folder = run.weights(which) if run.started else path
    if run.started:
        cycles = (f"cycles/{path.name}" for path in run.all_cycle_files)
        run.require_undamaged(f"{which}/", *cycles, sha256=cache.sha256)
    config = files.read_json((folder if folder.is_dir() else folder.parent) / "config.json")
    quantised = config.get("quantization_config")
    if quantised is not None:
        kind = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
        raise BadInput(f"{folder}: is quantised ({kind}), and codes cannot be subtracted; save it dequantised")
    tensors: dict[str, Stored] = {}
    shared: dict[str, str] = {}
    for shard in shards(folder):
        found, aliases = header(shard)
        twice = tensors.keys() & found.keys()
        require(not twice, f"{shard}: tensor '{min(twice, default='')}' is in another shard too")
        tensors |= found
        shared |= aliases
    factors = min((name for name in tensors if re.search(r"\.lora_[AB]\.", name)), default="")
    require(not factors, f"{path}: holds factors of an adapter ({factors}); give the adapter's folder, as FINAL")
    return Checkpoint(path, tensors, config, shared, run if run.started else None)


def header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors of a safetensors file by name; and names that save_model left out: whose tensor they share."""
    found, about = tensor_files.header(path)
    tensors = {name: Stored(path, name, entry.shape, entry.dtype) for name, entry in found.items()}
    return tensors, {alias: kept for alias, kept in about.items() if kept in tensors and alias not in tensors}
