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
from relora_lab.errors import BadInput, one_line, require
from relora_lab.runs import RunFolder
from relora_lab.tensor_files import PICKLES

# How far rounding to a dtype moves an entry, relative to the entries' rms (see counts.numerical_ranks):
# u of float32 is its unit roundoff; of the 16-bit ones half of it, just above the noise that was measured.
ROUNDING = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-12, "BF16": 2.0**-9}
ON_THE_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
INDEX = "model.safetensors.index.json"
NUMBERED = re.compile(r".*-(\d+)-of-(\d+)\.safetensors")


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


def locate(path: str | Path) -> Path:
    """The file or folder of that name; of a hub name ("gpt2", "org/model", "org/model@revision") its local copy.

    Raises BadInput where there is neither.
    """
    local = Path(path)
    if local.exists():
        return local
    name = str(path)
    is_name = isinstance(path, str) and ON_THE_HUB.fullmatch(name) and not Path(name.split("/")[0]).exists()
    require(bool(is_name), f"{path}: no such file or folder")
    try:
        return _from_hub(*name.split("@", 1))
    except Exception as error:  # the hub's many kinds have no base of their own
        raise BadInput(f"{path}: no such file or folder, nor to be had from the hub: {one_line(error)}") from None


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
    for shard in _shards(folder):
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


def _from_hub(repository: str, revision: str | None = None) -> Path:
    """The local copy of what a model on the hub is made of, and of nothing else that lies beside it."""
    from huggingface_hub import snapshot_download  # takes a while to import

    def fetched(*patterns: str) -> Path:
        found = snapshot_download(repository, revision=revision, allow_patterns=list(patterns), ignore_patterns="*/*")
        return Path(found)

    folder = fetched("config.json", INDEX, "adapter_config.json")
    named = set(map(str, files.read_json(folder / INDEX).get("weight_map", {}).values()))
    fetched(*(named or {"model.safetensors", "adapter_model.safetensors"}))
    return folder if list(folder.glob("*.safetensors")) else fetched("*.safetensors")


def _shards(path: Path) -> list[Path]:
    """A model's safetensors files: model.safetensors, or those that the index names, or all there are."""
    if path.is_file() or (path / "model.safetensors").exists():
        return [path if path.is_file() else path / "model.safetensors"]
    tensor_files.refuse_pickle(path)
    require(path.is_dir(), f"{path}: is neither a file nor a folder")
    index = files.read_json(path / INDEX).get("weight_map")
    if index:
        return _indexed(path, index)
    shards = sorted(path.glob("*.safetensors"))
    if not shards:
        pickles = sorted(found.name for found in path.iterdir() if found.suffix.lower() in PICKLES)
        because = f"only {pickles[0]}, and pickle files are never loaded" if pickles else "no .safetensors file"
        raise BadInput(f"{path}: holds {because}; save the model with safetensors")
    for shard in shards:
        numbers = NUMBERED.fullmatch(shard.name)
        complete = numbers is None or int(numbers[2]) == len(shards)
        require(complete, f"{path}: shards are missing: {shard.name} is one of {len(shards)} that are there")
    return shards


def _indexed(folder: Path, index: Any) -> list[Path]:
    """The shards that an index names, each with the tensors it should hold."""
    require(isinstance(index, dict), f"{folder / INDEX}: is damaged (weight_map)")
    shards = sorted({folder / str(file) for file in index.values()})
    for shard in shards:
        require(shard.parent == folder, f"{folder}: its index names a file elsewhere ({shard})")
        require(shard.exists(), f"{shard}: is missing, and {INDEX} names it")
    held = {shard.name: header(shard)[0] for shard in shards}
    for name, file in index.items():
        require(name in held[str(file)], f"{folder}: {INDEX} names {name}, but {file} holds none")
    return shards
