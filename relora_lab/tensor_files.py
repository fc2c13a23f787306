"""Safetensors files: headers of which nothing is believed, and files that are written whole or not at all.

The library reads the tensors, once the header is checked here: its own errors do not say which tensor is wrong, and
it takes a name that appears twice. Files are written here: the library (0.8) wants every tensor on the CPU at once,
leaves mode 0600 and, killed, a temporary file of any name; 0.7 loses the old file on a full disk.
"""

from __future__ import annotations

import json
import re
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from relora_lab import files
from relora_lab.errors import BadInput, require

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_HEADER = 2**23  # bytes: 60,000 tensors and more; read in less than a second
LONGEST_NAME = 500
PICKLES = {".npy", ".npz", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
# A pickle of protocol 2 to 5, or one of 0 or 1 that begins with a list, dict or call; a zip; an array of numpy.
PICKLED = re.compile(rb"\x80[\x02-\x05]|\(?[ci][\w.]+\n[\w.]+\n|\([dl]p\d+\n|[]}]q\x00|PK\x03\x04|\x93NUMPY")
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "C64": 64}
BITS |= dict.fromkeys(("F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0"), 8)
BITS |= {f"{kind}{bits}": bits for kind in "FIU" for bits in (16, 32, 64)} | {"BF16": 16}
OF_TORCH = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


class Entry(NamedTuple):
    """A tensor as the header tells it; its bytes are those from `begin` to `end` after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """What a file says it holds: tensors by name, and texts by name."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]


def header(path: Path) -> Header:
    """The header of a safetensors file, checked against itself and against the file's size; no tensor is read.

    Raises BadInput, naming file and tensor: for a pickle, which is not opened where its name tells; a file that is
    cut or too long; names that are no module path or appear twice; tensors that overlap, leave bytes out, or have
    an unknown dtype or a shape that is not theirs.
    """
    refuse_pickle(path)
    named = str(path).encode(errors="replace").decode()
    require(named == str(path), f"{named}: the path is not UTF-8; rename it")  # the library opens no such file
    try:
        size, text = _read(path)
        tensors, metadata = _parsed(text)
        promised = _laid_out(tensors)
        found = size - 8 - len(text)
        require(found >= promised, f"header promises {promised} data bytes, found {found}")
        extra = found - promised
        require(not extra, f"{extra} unexpected byte{'s' * (extra > 1)} after the last tensor")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    return Header(tensors, metadata)


def refuse_pickle(path: Path) -> None:
    """Raise BadInput for the name of a pickle."""
    require(path.suffix.lower() not in PICKLES, f"{path}: pickle files are never loaded; save it with safetensors")


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name, its header checked."""
    from safetensors.torch import load_file

    header(path)
    return load_file(path)


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all; one tensor after the other is taken to the CPU."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        dtype = OF_TORCH[str(tensor.dtype).removeprefix("torch.")]
        entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that tensors are aligned
    with files.new_file(path, 8 + len(text) + end) as writing, writing.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(_bytes(tensors[name]))


def _bytes(tensor: Tensor) -> memoryview:
    import torch  # here and in `read`: who looks at headers does not wait for it

    whole: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(whole)


# ---- what is wrong with a header


def _read(path: Path) -> tuple[int, bytes]:
    """The file's size, and its header as it stands there."""
    facts = path.stat()
    require(stat.S_ISREG(facts.st_mode), "is no file")
    size = facts.st_size
    require(size > 0, "empty or cut (0 bytes)")
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        # The length of a header can begin with the bytes of a pickle: it is one if the header cannot be so long.
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            pickled = PICKLED.match(start + file.read(64))
            require(not pickled, "this is a pickle, which can run code; only safetensors are read")
        require(size >= 8, f"not a safetensors file ({size} bytes)")
        require(
            length <= size - 8,
            f"header length is larger than the file ({length} of {size} bytes): cut, or no safetensors",
        )
        require(length <= LARGEST_HEADER, f"header has {length} bytes; no more than {LARGEST_HEADER} are read")
        return size, file.read(length)


class _Twice(dict[str, Any]):
    """A JSON object that has a name twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    name = Counter(name for name, _ in pairs).most_common(1)[0][0]
    return _Twice({name: None})


def _parsed(text: bytes) -> tuple[dict[str, Entry], dict[str, str]]:
    try:
        found = json.loads(text.decode(), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise BadInput(f"header is not valid JSON (byte {error.start} is not UTF-8)") from None
    except json.JSONDecodeError as error:
        byte = len(error.doc[: error.pos].encode())
        raise BadInput(f"header is not valid JSON (byte {byte}: {error.msg})") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, lists in lists in lists
        raise BadInput("header is not valid JSON that a safetensors file could have") from None
    require(isinstance(found, dict), "header is not valid JSON of a safetensors file (byte 0 is no '{')")
    _refuse_twice(found, "tensor")
    metadata = found.pop("__metadata__", {})
    require(isinstance(metadata, dict), "metadata must be texts by name")
    _refuse_twice(metadata, "metadata")
    for name, value in metadata.items():
        require(isinstance(value, str), f"metadata {_shown(name)} must be text")
    return {name: _entry(name, about) for name, about in found.items()}, dict(metadata)


def _refuse_twice(found: dict[str, Any], what: str) -> None:
    require(not isinstance(found, _Twice), f"{what} {_shown(next(iter(found), ''))} appears twice")


def _entry(name: str, about: Any) -> Entry:
    tensor = f"tensor {_shown(name)}"
    require(is_module_path(name), f"{tensor}: not a module path")
    complete = isinstance(about, dict) and about.keys() == {"dtype", "shape", "data_offsets"}
    require(complete, f"{tensor}: must have dtype, shape and data_offsets, and no more")
    dtype, shape, offsets = about["dtype"], about["shape"], about["data_offsets"]
    require(isinstance(dtype, str) and dtype in BITS, f"{tensor}: unknown dtype {_shown(dtype, quoted=False)}")
    require(_whole_numbers(shape), f"{tensor}: impossible shape {_shown(shape, quoted=False)}")
    bits = BITS[dtype]
    for length in sorted(shape):  # an empty one first
        bits *= length
        require(max(length, bits) < 2**63, f"{tensor}: impossible shape {_shown(shape, quoted=False)}")
    fits = _whole_numbers(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]
    require(fits, f"{tensor}: impossible offsets {_shown(offsets, quoted=False)}")
    needs, given = -(-bits // 8), offsets[1] - offsets[0]
    require(needs == given, f"{tensor} needs {needs} bytes, offsets give {given}")
    return Entry(dtype, tuple(shape), *offsets)


def _laid_out(tensors: Mapping[str, Entry]) -> int:
    """How many bytes of data the tensors promise. Raises BadInput where two overlap or bytes belong to none."""
    end, last = 0, ""
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        require(entry.begin >= end, f"tensors {_shown(last)} and {_shown(name)} overlap")
        require(entry.begin <= end, f"{entry.begin - end} bytes before tensor {_shown(name)} belong to no tensor")
        end, last = entry.end, name
    return end


def is_module_path(name: str) -> bool:
    """Can this be the name of a module's tensor? Parts between dots, of what can be seen but is no part of a path."""
    parts = name.split(".")
    return len(name) <= LONGEST_NAME and all(parts) and name.isprintable() and not re.search(r"[\s/\\]", name)


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _shown(value: Any, *, quoted: bool = True) -> str:
    text = repr(value) if quoted else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
