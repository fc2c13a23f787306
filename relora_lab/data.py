"""Corpus -> token file -> batches. A batch is a function of (seed, step): there is no stream state to lose.

A corpus is `stdlib` (the running Python's own standard library as text), a text file, a folder of text files or
a list of files. Its bytes are its tokens. 5 % of the files, chosen by a hash of their relative path, are held
out; where that leaves either part empty (one file, say) the last 5 % of the text are.
"""

import hashlib
import json
import os
import stat
import sysconfig
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from relora_lab import files, seeds
from relora_lab.errors import BadInput, require

HELD_OUT = 0.05
STDLIB_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}
STDLIB_LARGEST = 300_000


@dataclass(frozen=True)
class Corpus:
    """Memory-mapped tokens of a text, training and held-out part, and what they were made from."""

    folder: Path
    vocab_size: int
    text_sha256: str

    @cached_property
    def train(self) -> np.ndarray:
        """Training tokens, 1-D."""
        return np.load(self.folder / "train.npy", mmap_mode="r")

    @cached_property
    def held_out(self) -> np.ndarray:
        """Held-out tokens, 1-D."""
        return np.load(self.folder / "held_out.npy", mmap_mode="r")


class Batches:
    """Training batches of a corpus: every epoch is a new permutation of its sequences, at a new offset."""

    def __init__(self, corpus: Corpus, *, batch_size: int, sequence_length: int, seed: int) -> None:
        self.tokens = corpus.train
        self.batch_size, self.length, self.seed = batch_size, sequence_length, seed
        self.per_epoch = (len(self.tokens) - 1) // sequence_length  # one short, to leave room for the offset
        self._epoch, self._starts = -1, np.empty(0, np.int64)

    def __call__(self, step: int) -> torch.Tensor:
        """Token ids (batch_size, sequence_length), int64, of the update after `step` updates."""
        first = step * self.batch_size
        rows = [self._sequence(index) for index in range(first, first + self.batch_size)]
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def _sequence(self, index: int) -> np.ndarray:
        epoch, position = divmod(index, self.per_epoch)
        if epoch != self._epoch:
            random = np.random.default_rng(seeds.derive(self.seed, "epoch", epoch))
            room = len(self.tokens) - self.per_epoch * self.length
            offset = random.integers(min(room, self.length) + 1)
            self._starts = offset + self.length * random.permutation(self.per_epoch)
            self._epoch = epoch
        start = self._starts[position]
        return self.tokens[start : start + self.length]


def held_out_batches(corpus: Corpus, *, tokens: int, batch_size: int, sequence_length: int) -> Iterator[torch.Tensor]:
    """A fixed set of about `tokens` held-out tokens, whole sequences spread evenly, in batches (n, length)."""
    available = len(corpus.held_out) // sequence_length
    count = min(available, max(1, tokens // sequence_length))
    starts = np.arange(count) * available // count * sequence_length
    for first in range(0, count, batch_size):
        rows = [corpus.held_out[s : s + sequence_length] for s in starts[first : first + batch_size]]
        yield torch.from_numpy(np.stack(rows).astype(np.int64))


def open_corpus(spec: str | list[str], cache: Path, *, sequence_length: int) -> Corpus:
    """The corpus as a token file below `cache`, made on first use.

    Raises BadInput, naming the file, for a corpus that is missing, unreadable, not text or too short.
    """
    sources = list(_sources(spec))
    facts = [(name, os.path.realpath(path), *_size_and_time(path)) for name, path in sources]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    folder = cache / key
    if not folder.exists():
        train, held_out = _split([(name, _read(path)) for name, path in sources])
        _check_length(train, held_out, sequence_length)
        cache.mkdir(parents=True, exist_ok=True)
        with files.new_folder(folder) as making:
            for name, text in {"train": train, "held_out": held_out}.items():
                np.save(making / f"{name}.npy", np.frombuffer(text, np.uint8))
            text_sha256 = hashlib.sha256(train + b"\0" + held_out).hexdigest()
            made = {"text_sha256": text_sha256, "vocab_size": 256}
            (making / "corpus.json").write_text(json.dumps(made))
    made = json.loads((folder / "corpus.json").read_text())
    corpus = Corpus(folder, made["vocab_size"], made["text_sha256"])
    _check_length(corpus.train, corpus.held_out, sequence_length)
    return corpus


def _check_length(train: Sized, held_out: Sized, sequence_length: int) -> None:
    counts = {
        "corpus": len(train) + len(held_out),
        "training part of the corpus": len(train),
        "held-out part of the corpus": len(held_out),
    }
    for part, tokens in counts.items():
        require(
            tokens > sequence_length,
            f"data.corpus: the {part} has {tokens} tokens, needs > sequence length {sequence_length}",
        )


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        facts = path.stat()
    except OSError as error:
        _refuse(error)
    except ValueError as error:  # a NUL in the name
        raise BadInput(f"data.corpus: {str(path)!r}: cannot be read ({error})") from None
    regular = stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode)
    require(regular, f"data.corpus: {path}: is neither a file nor a folder")
    return facts.st_size, facts.st_mtime_ns


def _refuse(error: OSError) -> NoReturn:
    raise BadInput(f"data.corpus: {str(error.filename)[-200:]}: cannot be read ({error.strerror})") from None


def _sources(spec: str | list[str]) -> Iterator[tuple[str, Path]]:
    """(relative path, path) of the corpus's files, in a fixed order."""
    if spec == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        for name, path in _walk(root, STDLIB_LEFT_OUT):
            if path.suffix == ".py" and path.stat().st_size <= STDLIB_LARGEST:
                yield name, path
        return
    for given in [spec] if isinstance(spec, str) else spec:
        path = Path(given).expanduser()
        _size_and_time(path)
        if path.is_dir():
            found = list(_walk(path, set()))
            require(bool(found), f"data.corpus: {given}: holds no files")
            yield from found
        else:
            yield path.name, path


def _walk(root: Path, left_out: set[str]) -> Iterator[tuple[str, Path]]:
    """Files below `root`, hidden ones and links to folders left out, sorted by relative path."""
    found = []
    for folder, subfolders, names in os.walk(root, onerror=_refuse):
        subfolders[:] = [name for name in subfolders if name not in left_out and not name.startswith(".")]
        found += [Path(folder) / name for name in names if not name.startswith(".")]
    return iter(sorted((path.relative_to(root).as_posix(), path) for path in found))


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        content.decode()
    except OSError as error:
        _refuse(error)
    except UnicodeDecodeError as error:
        raise BadInput(f"data.corpus: {path}: is not UTF-8 text (byte {error.start})") from None
    require(b"\0" not in content, f"data.corpus: {path}: is binary (byte {content.find(0)} is 0)")
    return content


def _split(texts: list[tuple[str, bytes]]) -> tuple[bytes, bytes]:
    """Training and held-out text."""
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for name, text in texts:
        draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
        parts[draw < HELD_OUT].append(text)
    train, held_out = (b"".join(part) for part in parts)
    if train and held_out:
        return train, held_out
    text = train + held_out
    cut = len(text) - round(len(text) * HELD_OUT)
    return text[:cut], text[cut:]
