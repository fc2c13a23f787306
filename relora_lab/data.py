"""Documents -> token file -> batches. A batch is a function of (seed, step): there is no stream state to lose."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from relora_lab import documents, files, seeds, token_folder, tokenizer
from relora_lab.documents import Documents
from relora_lab.errors import require
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
    pad_token_id: ClassVar[None] = None  # every sequence is full

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

    @property
    def facts(self) -> dict[str, int]:
        """How much there is, for environment.json."""
        return {"training_tokens": len(self.train), "held_out_tokens": len(self.held_out)}

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
    token_folder.made_once(folder, lambda making: _make(data, found, limits, making, sequence_length))
    corpus = Corpus(folder, **files.read_json(folder / "corpus.json"))
    _check_length(found.kind, len(corpus.train), len(corpus.held_out), sequence_length)
    return corpus


def _key(data: Data, found: Documents, limits: dict[str, int | None]) -> str:
    """16 hex digits of all that determines a token folder."""
    used = documents.tokenizer_identity(data)
    facts = [FORMAT, found.kind, found.identity, used, data.vocabulary, limits]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _make(data: Data, found: Documents, limits: dict[str, int | None], making: Path, sequence_length: int) -> None:
    """Fill a token folder: both parts' tokens, the tokenizer, and what `Corpus` says of them."""
    used = _tokenizer(data, found)
    vocab_size = data.vocabulary or len(used)
    sha256, counts = hashlib.sha256(), {}
    if data.tokenizer != "bytes":  # their hash is that of the text alone
        sha256.update(f"{tokenizer.token_type(vocab_size).str} {vocab_size}".encode())
    for part, texts in (("train", found.train()), ("held_out", found.held_out())):
        with (
            (making / f"{part}.bin").open("wb") as file,
            token_folder.bar(f"tokens ({part})", "token", limits[part]) as bar,
        ):
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
            tokenizer.require_within(vocab_size, ids, used)
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


def _check_length(kind: str, train: int, held_out: int, sequence_length: int) -> None:
    counts = {kind: train + held_out, f"training part of the {kind}": train, f"held-out part of the {kind}": held_out}
    for part, tokens in counts.items():
        require(
            tokens > sequence_length,
            f"data.{kind}: the {part} has {tokens} tokens, needs > sequence length {sequence_length}",
        )
