"""Documents -> token file -> batches. A batch is a function of (seed, step): there is no stream state to lose."""

import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from relora_lab import documents, files, manifest, seeds, tokenizer
from relora_lab.documents import Documents
from relora_lab.errors import BadInput, require
from relora_lab.settings import Data

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 3  # of the token folder; part of its name
BATCH_BYTES = 2**20  # of text that is tokenised at once


@dataclass(frozen=True)
class Corpus:
    """Memory-mapped tokens of a text, training and held-out part, and what they were made from.

    `text_sha256` names the tokens: for bytes it is the hash of both parts of the text.
    """

    folder: Path
    vocab_size: int
    text_sha256: str
    eos_token_id: int | None = None

    @cached_property
    def train(self) -> np.ndarray:
        """Training tokens, 1-D."""
        return self._tokens("train")

    @cached_property
    def held_out(self) -> np.ndarray:
        """Held-out tokens, 1-D."""
        return self._tokens("held_out")

    @property
    def tokenizer_folder(self) -> Path:
        """The folder with the saved tokenizer."""
        return self.folder / "tokenizer"

    def _tokens(self, part: str) -> np.ndarray:
        return np.memmap(self.folder / f"{part}.bin", tokenizer.token_type(self.vocab_size), mode="r")


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


def open_corpus(spec: str | list[str] | Data, cache: Path, *, sequence_length: int) -> Corpus:
    """The corpus (`spec` alone is data.corpus) or dataset as a token file below `cache`, made on first use.

    Raises BadInput, naming the field, for one that is missing, unreadable, not text or too short.
    """
    data = spec if isinstance(spec, Data) else Data(corpus=spec)
    found = documents.of(data)
    limits: dict[str, int | None] = {"train": data.max_tokens, "held_out": None}
    if data.max_tokens is not None:
        limits["held_out"] = max(data.max_tokens // 20, 16 * sequence_length)
    folder = cache / _key(data, found, limits)
    if not folder.exists():
        with _parents_of(folder), files.in_turn(folder.with_name(f".{folder.name}.lock")):
            if not folder.exists():  # nobody made it meanwhile
                for left_by_a_killed_process in folder.parent.glob(f".{folder.name}-*"):
                    shutil.rmtree(left_by_a_killed_process)
                with files.new_folder(folder) as making:
                    _make(data, found, limits, making, sequence_length)
    require_undamaged(folder)
    corpus = Corpus(folder, **files.read_json(folder / "corpus.json"))
    _check_length(found.kind, len(corpus.train), len(corpus.held_out), sequence_length)
    return corpus


def require_undamaged(folder: Path) -> None:
    """Raise BadInput unless all files of a token folder are as they were written."""
    try:
        require(bool(manifest.read(folder)), f"{folder / 'manifest.json'}: is missing")
        manifest.require_undamaged(folder, [""])
    except BadInput as error:
        raise BadInput(f"{error}; remove {folder}, which is made again when needed") from None


def _key(data: Data, found: Documents, limits: dict[str, int | None]) -> str:
    """16 hex digits of all that determines a token folder."""
    local = Path(data.tokenizer).expanduser()
    own = data.tokenizer in ("bytes", "bpe")
    used = data.tokenizer if own or not local.is_dir() else documents.file_facts("data.tokenizer", local)
    facts = [FORMAT, found.kind, found.identity, used, data.vocabulary, limits]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


@contextmanager
def _parents_of(folder: Path) -> Iterator[None]:
    """Make the folders above `folder`; those made here and left empty by an error are removed again."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for parent in missing:
                parent.rmdir()
        raise


def _make(data: Data, found: Documents, limits: dict[str, int | None], making: Path, sequence_length: int) -> None:
    """Fill a token folder: both parts' tokens, the tokenizer, and what `Corpus` says of them."""
    used = _tokenizer(data, found)
    vocab_size = data.vocabulary or len(used)
    sha256, counts = hashlib.sha256(), {}
    if data.tokenizer != "bytes":  # their hash is that of the text alone
        sha256.update(f"{tokenizer.token_type(vocab_size).str} {vocab_size}".encode())
    for part, texts in (("train", found.train()), ("held_out", found.held_out())):
        with (making / f"{part}.bin").open("wb") as file, _bar(part, limits[part]) as bar:
            counts[part] = 0
            for tokens in _encoded(data, used, vocab_size, found.separator, texts, limits[part]):
                file.write(tokens.data)
                sha256.update(tokens.data)
                bar.update(len(tokens))
                counts[part] += len(tokens)
        if part == "train":
            sha256.update(b"\0")
    _check_length(found.kind, counts["train"], counts["held_out"], sequence_length)
    used.save_pretrained(making / "tokenizer")
    facts = {"text_sha256": sha256.hexdigest(), "vocab_size": vocab_size, "eos_token_id": used.eos_token_id}
    (making / "corpus.json").write_text(json.dumps(facts))
    manifest.record(making, "train.bin", "held_out.bin", "corpus.json", "tokenizer")


def _tokenizer(data: Data, found: Documents) -> "PreTrainedTokenizerBase":
    if data.tokenizer == "bytes":
        return tokenizer.byte_tokenizer()
    if data.tokenizer != "bpe":
        return tokenizer.load(data.tokenizer)
    assert data.vocabulary is not None
    # A token has about four bytes, so this is about the text that is trained on; a stream is read no further.
    most = tokenizer.MOST_BPE_BYTES if data.max_tokens is None else 4 * data.max_tokens
    return tokenizer.train_bpe(found.train(), data.vocabulary, most_bytes=min(most, tokenizer.MOST_BPE_BYTES))


def _encoded(
    data: Data,
    used: "PreTrainedTokenizerBase",
    vocab_size: int,
    separator: str,
    texts: Iterator[str],
    limit: int | None,
) -> Iterator[np.ndarray]:
    """Tokens of the texts, batch by batch and in the type of the token file, up to `limit` of them.

    No text is taken after the limit is reached: without its last text, a batch has fewer bytes than tokens are to
    come, and a token has at least a byte.
    """
    kind, count = tokenizer.token_type(vocab_size), 0
    while limit is None or count < limit:
        left = BATCH_BYTES if limit is None else limit - count
        batch = _take(texts, min(left, BATCH_BYTES))
        if not batch:
            return
        if data.tokenizer == "bytes":
            tokens = np.frombuffer("".join(text + separator for text in batch).encode(), np.uint8)
        else:
            ids = tokenizer.encode(used, batch, separator)
            most = int(ids.max(initial=0))
            require(
                most < vocab_size,
                f"data.vocab_size: the text has token {most} ({used.convert_ids_to_tokens(most)!r}), beyond a "
                f"vocabulary of {vocab_size}; the tokenizer has {len(used)}",
            )
            tokens = ids.astype(kind)
        yield tokens if limit is None else tokens[: limit - count]
        count += len(tokens)


def _take(texts: Iterator[str], size: int) -> list[str]:
    """The next texts, until they have so many bytes; at least one if there is one."""
    taken: list[str] = []
    while size > 0 and (text := next(texts, None)) is not None:
        taken.append(text)
        size -= len(text.encode()) + 1  # what follows the text is a token too
    return taken


def _bar(part: str, total: int | None) -> tqdm:
    """Progress on stderr if that is a terminal and it takes long; a worker's is its driver's to show."""
    hidden = True if multiprocessing.parent_process() else None
    return tqdm(desc=f"tokens ({part})", total=total, unit="token", unit_scale=True, disable=hidden, delay=1)


def _check_length(kind: str, train: int, held_out: int, sequence_length: int) -> None:
    counts = {kind: train + held_out, f"training part of the {kind}": train, f"held-out part of the {kind}": held_out}
    for part, tokens in counts.items():
        require(
            tokens > sequence_length,
            f"data.{kind}: the {part} has {tokens} tokens, needs > sequence length {sequence_length}",
        )
