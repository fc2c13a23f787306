"""What was measured before, by the sha256 of the files it came from.

In $RELORA_LAB_CACHE, or relora_lab/ in the user's cache folder; it can be deleted at any time.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import lru_cache, wraps
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from relora_lab import files

Result = TypeVar("Result")
VERSION = 1  # of the numbers: raise it when they change
_hashes: dict[tuple[object, ...], str] = {}


@dataclass(frozen=True)
class Measured:
    """A matrix's singular values, and what else was seen while it was in memory.

    source: of ΔW, "weights" or "factors"; rms of the final W, NaN where W was not read; nonfinite: how many entries
    are NaN or infinite, and sigma is then NaN.
    """

    sigma: np.ndarray = field(repr=False)
    source: str
    rms: float
    nonfinite: int


class Cache:
    """Measurements by the files a matrix was read from, how they were made, and its name. Threads may share it."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, Measured]] = {}
        self._added: set[str] = set()
        self._keys: dict[tuple[tuple[Path, ...], str], str] = {}
        self._lock = Lock()

    def get(self, sources: Iterable[Path], how: str, name: str) -> Measured | None:
        """What was put there, in this process or an earlier one."""
        key = self._key(sources, how)
        with self._lock:
            if key not in self._entries:
                self._entries[key] = _load(_folder() / f"{key}.safetensors")
            return self._entries[key].get(name)

    def put(self, sources: Iterable[Path], how: str, name: str, measured: Measured) -> None:
        """Remember it; `save` writes it."""
        key = self._key(sources, how)
        with self._lock:
            self._entries.setdefault(key, {})[name] = measured
            self._added.add(key)

    def _key(self, sources: Iterable[Path], how: str) -> str:
        """The same for each matrix of the same files."""
        about = tuple(sources), how
        if about not in self._keys:
            self._keys[about] = _key(*about)
        return self._keys[about]

    def save(self) -> None:
        """Write what is new. A cache that cannot be written is none."""
        with self._lock, contextlib.suppress(OSError):
            for key in self._added:
                _store(_folder() / f"{key}.safetensors", self._entries[key])
            self._added.clear()
            for path in {path for sources, _ in self._keys for path in sources}:
                about = stamp(path)
                if about in _hashes and not _note(about).exists():
                    _note(about).parent.mkdir(parents=True, exist_ok=True)
                    files.write_text(_note(about), _hashes[about])


def stamp(path: Path) -> tuple[object, ...]:
    """What stays the same as long as nobody writes to the file."""
    facts = path.stat()
    return str(path.resolve()), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino


def remembered(files: Callable[..., Iterable[Path]]) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Remember what a function of a run (and of more) gave, as long as nobody writes to the `files` of the same."""

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        @lru_cache(maxsize=1024)
        def known(about: tuple[tuple[object, ...], ...], *arguments: Any) -> Result:  # noqa: ARG001 (part of the key)
            return function(*arguments)

        @wraps(function)
        def call(run: str | Path, *more: Any) -> Result:
            return known(tuple(map(stamp, files(Path(run), *more))), Path(run), *more)

        return call

    return decorate


def sha256(path: Path) -> str:
    """Hash of a file's content, in hex; remembered as long as its size, its times and its place stay the same.

    In this process, and where a Cache is saved, in the next one.
    """
    about = stamp(path)
    if about not in _hashes:
        noted = ""
        with contextlib.suppress(OSError, ValueError):
            noted = _note(about).read_text()
        _hashes[about] = noted if re.fullmatch("[0-9a-f]{64}", noted) else files.sha256(path)
    return _hashes[about]


def _note(about: tuple[object, ...]) -> Path:
    return _folder() / "sha256" / hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _folder() -> Path:
    given = os.environ.get("RELORA_LAB_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "relora_lab"


def _key(sources: Iterable[Path], how: str) -> str:
    about = [VERSION, how, *(sha256(path) for path in sources)]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _load(path: Path) -> dict[str, Measured]:
    """What an entry holds; nothing where it is damaged or not there."""
    with contextlib.suppress(OSError, SafetensorError, ValueError, KeyError, TypeError):
        with safe_open(path, "np") as file:
            facts = json.loads(file.metadata()["facts"])
        sigmas = safetensors.numpy.load_file(path)
        if facts.pop("sha256") == _digest(facts, sigmas):
            return {name: Measured(sigmas[name], **about) for name, about in facts["matrices"].items()}
    return {}


def _store(path: Path, entry: dict[str, Measured]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = {**_load(path), **entry}  # another process may have been here
    sigmas = {name: np.ascontiguousarray(found.sigma) for name, found in entry.items()}
    matrices = {name: {k: v for k, v in asdict(found).items() if k != "sigma"} for name, found in entry.items()}
    facts: dict[str, Any] = {"matrices": matrices}
    facts["sha256"] = _digest(facts, sigmas)
    with files.new_file(path) as writing:
        safetensors.numpy.save_file(sigmas, writing, metadata={"facts": json.dumps(facts)})


def _digest(facts: dict[str, Any], sigmas: dict[str, np.ndarray]) -> str:
    found = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(sigmas):
        found.update(sigmas[name].tobytes())
    return found.hexdigest()
