"""Where the weights of a model lie: the safetensors files of a folder, or of the local copy of a name on the hub."""

import re
from pathlib import Path
from typing import Any

from relora_lab import files, tensor_files
from relora_lab.errors import BadInput, one_line, require
from relora_lab.tensor_files import PICKLES

ON_THE_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
INDEX = "model.safetensors.index.json"
NUMBERED = re.compile(r".*-(\d+)-of-(\d+)\.safetensors")


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


def shards(path: Path) -> list[Path]:
    """A model's safetensors files: model.safetensors, or those that the index names, or all there are."""
    if path.is_file() or (path / "model.safetensors").exists():
        return [path if path.is_file() else path / "model.safetensors"]
    tensor_files.refuse_pickle(path)
    require(path.is_dir(), f"{path}: is neither a file nor a folder")
    index = files.read_json(path / INDEX).get("weight_map")
    if index:
        return _indexed(path, index)
    found = sorted(path.glob("*.safetensors"))
    if not found:
        pickles = sorted(file.name for file in path.iterdir() if file.suffix.lower() in PICKLES)
        because = f"only {pickles[0]}, and pickle files are never loaded" if pickles else "no .safetensors file"
        raise BadInput(f"{path}: holds {because}; save the model with safetensors")
    for shard in found:
        numbers = NUMBERED.fullmatch(shard.name)
        complete = numbers is None or int(numbers[2]) == len(found)
        require(complete, f"{path}: shards are missing: {shard.name} is one of {len(found)} that are there")
    return found


def _indexed(folder: Path, index: Any) -> list[Path]:
    """The shards that an index names, each with the tensors it should hold."""
    require(isinstance(index, dict), f"{folder / INDEX}: is damaged (weight_map)")
    found = sorted({folder / str(file) for file in index.values()})
    for shard in found:
        require(shard.parent == folder, f"{folder}: its index names a file elsewhere ({shard})")
        require(shard.exists(), f"{shard}: is missing, and {INDEX} names it")
    held = {shard.name: tensor_files.header(shard).tensors for shard in found}
    for name, file in index.items():
        require(name in held[str(file)], f"{folder}: {INDEX} names {name}, but {file} holds none")
    return found


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
