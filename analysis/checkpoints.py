"""Two checkpoints, matrix by matrix: what they share, and ΔW of each with one matrix in memory at a time.

A checkpoint is a run folder, a Hugging Face folder (one safetensors file or several shards) or a safetensors file.
"""

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from relora_lab.errors import BadInput, require
from relora_lab.runs import RunFolder

PICKLES = {".npy", ".npz", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
# How far rounding to a dtype moves an entry, relative to the entries' rms (see counts.numerical_ranks):
# u of float32 is its unit roundoff; of the 16-bit ones half of it, just above the noise that was measured.
ROUNDING = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-12, "BF16": 2.0**-9}
ROLES = ["q", "k", "v", "o", "gate", "up", "down"]


@dataclass(frozen=True)
class Stored:
    """A tensor as its file's header tells it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> Tensor:
        """The tensor. The file is opened for it alone: a handle that stays open keeps all it has read."""
        with safe_open(self.file, "pt") as file:
            return file.get_tensor(self.name)


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint by name, none of them read yet."""

    path: Path
    tensors: dict[str, Stored]


@dataclass(frozen=True)
class Matrix:
    """A matrix (rows, cols) = (out, in) that two checkpoints share; `layer` is -1 outside numbered blocks."""

    name: str
    layer: int
    role: str
    start: Stored
    final: Stored

    @property
    def dtype(self) -> str:
        """The coarser of the two stored dtypes: what it rounds away is in ΔW."""
        return max(self.start.dtype, self.final.dtype, key=ROUNDING.__getitem__)

    @property
    def rows(self) -> int:
        """Output features."""
        return self.final.shape[0]

    @property
    def cols(self) -> int:
        """Input features."""
        return self.final.shape[1]

    def delta(self) -> tuple[Tensor, Tensor]:
        """(ΔW, final W), both (rows, cols), in float32, or in float64 where either was stored so."""
        start, final = self.start.read(), self.final.read()
        wide = torch.promote_types(torch.promote_types(start.dtype, final.dtype), torch.float32)
        final = final.to(wide)
        return final - start.to(wide), final


def open_checkpoint(path: str | Path, which: str = "final") -> Checkpoint:
    """Read the headers of a checkpoint; of a run folder that of `which` ("warm_start" or "final").

    Raises BadInput, naming the file, for what is missing, a pickle, or no safetensors.
    """
    path = Path(path)
    require(path.exists(), f"{path}: no such file or folder")
    if path.is_file():
        return Checkpoint(path, _header(path))
    run = RunFolder(path)
    folder = run.weights(which) if run.started else path
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        pickles = sorted(found.name for found in folder.iterdir() if found.suffix in PICKLES)
        because = f"only {pickles[0]}, and pickle files are never loaded" if pickles else "no .safetensors file"
        raise BadInput(f"{folder}: holds {because}; save the model with safetensors")
    tensors: dict[str, Stored] = {}
    for shard in shards:
        found = _header(shard)
        twice = tensors.keys() & found.keys()
        require(not twice, f"{shard}: tensor '{min(twice, default='')}' is in another shard too")
        tensors |= found
    return Checkpoint(path, tensors)


def shared_matrices(start: Checkpoint, final: Checkpoint, match: str | Sequence[str] | None = None) -> list[Matrix]:
    """The matrices to compare, in the model's order.

    By default every linear map inside the numbered blocks; embeddings, output head and norms are not among them.
    `match` selects 2-D tensors by glob instead ("*.q_proj", or several). Raises BadInput where a selected
    matrix is missing from one side, has another shape there, or is stored in a format that cannot be
    subtracted, and where nothing is selected.
    """
    selected = _selection(match)
    names = [
        {n for n, t in s.tensors.items() if len(t.shape) == 2 and 0 not in t.shape and selected(n)}
        for s in (start, final)
    ]
    require(
        bool(names[0] | names[1]),
        f"{final.path}: no matrix is selected"
        + (
            f" by --match {' '.join([match] if isinstance(match, str) else match)}"
            if match
            else "; choose some with --match"
        ),
    )
    for side, missing in ((start, names[1] - names[0]), (final, names[0] - names[1])):
        gone = sorted(name for name in missing if name not in side.tensors)
        require(not gone, f"{side.path}: missing {_and_more(gone)}")
    shapes = {n: (start.tensors[n].shape, final.tensors[n].shape) for n in sorted(names[0] | names[1], key=_order)}
    other = [name for name, (here, there) in shapes.items() if here != there]
    if other:
        here, there = (_by(shape) for shape in shapes[other[0]])
        raise BadInput(f"{start.path}: {other[0]} is {here}, but {there} in {final.path}{_more(other)}")
    for side in (start, final):
        for name in shapes:
            dtype = side.tensors[name].dtype
            require(dtype in ROUNDING, f"{side.path}: {name} is stored as {dtype}, which cannot be subtracted")
    places = [_place(name) for name in shapes]
    by_layer = Counter((layer, role) for _, layer, role in places)
    twice = {
        role for (_, role), count in by_layer.items() if count > 1
    }  # T5's self- and cross-attention have a q each
    roles = [".".join(module.split(".")[-2:]) if role in twice else role for module, _, role in places]
    ends = [(start.tensors[name], final.tensors[name]) for name in shapes]
    return [Matrix(m, n, role, *end) for (m, n, _), role, end in zip(places, roles, ends, strict=True)]


def role_key(role: str) -> tuple[int, str]:
    """Sorts roles as a block runs them: q, k, v, o, gate, up, down, then others by name."""
    return ROLES.index(role) if role in ROLES else len(ROLES), role


def _header(path: Path) -> dict[str, Stored]:
    require(path.suffix not in PICKLES, f"{path}: pickle files are never loaded; save the model with safetensors")
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return {n: Stored(path, n, tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path}: not a safetensors file, or damaged ({path.stat().st_size} bytes): {error}") from None


def _selection(match: str | Sequence[str] | None) -> Callable[[str], bool]:
    if match is None:
        return lambda name: bool(re.search(r"(^|\.)\d+\.", name)) and not re.search("embed|relative_attention", name)
    globs = [match] if isinstance(match, str) else list(match)
    return lambda name: any(fnmatch.fnmatchcase(known, g) for g in globs for known in (name, _module(name)))


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _place(name: str) -> tuple[str, int, str]:
    """(module, layer, role): model.layers.3.mlp.up_proj is layer 3, role up."""
    module = _module(name)
    number = re.search(r"(?:^|\.)(\d+)(?=\.|$)", module)
    last = module.rpartition(".")[2]
    role = last.removesuffix("_proj")
    return module, int(number[1]) if number else -1, role if role in ROLES else last


def _order(name: str) -> tuple[int, tuple[int, str], str]:
    module, layer, role = _place(name)
    return layer, role_key(role), module


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _and_more(names: Sequence[str]) -> str:
    return names[0] + _more(names) if names else ""


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
