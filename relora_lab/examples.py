"""Examples of a task -> token folder, made once: inputs, labels and, for a T5, what it is to write.

A LLaMA's input is the texts, each with the end-of-sequence token after it if the tokenizer has one that does not pad
too (as P1's public code has them), else with a line break between them. A T5's is the task's prompt and that token.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relora_lab import documents, example_rows, files, token_folder, tokenizer
from relora_lab.errors import require
from relora_lab.example_rows import Row, Rows
from relora_lab.settings import Data
from relora_lab.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1  # of the folder; part of its name
AT_ONCE = 1000  # examples that are tokenised together
PAD, END = "<pad>", "</s>"  # of the tokenizers made here


@dataclass(frozen=True)
class Part:
    """Examples: the tokens of all inputs, where each one's end, and their labels (float32)."""

    ids: np.ndarray
    ends: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def tokens(self, index: int) -> np.ndarray:
        """The input of one example."""
        return self.ids[self.ends[index - 1] if index else 0 : self.ends[index]]


@dataclass(frozen=True)
class Examples:
    """The examples of a task, memory-mapped, and what they were made from.

    `targets` are the tokens of each text that a T5 may write, with the end of sequence. `truncated` says how many
    inputs were cut in each part, `majority` the share of the most frequent label of those held out. `text_sha256` is
    that of tokens, labels and targets.
    """

    folder: Path
    vocab_size: int
    text_sha256: str
    eos_token_id: int | None
    pad_token_id: int
    targets: list[list[int]]
    truncated: dict[str, int]
    majority: float | None

    @cached_property
    def train(self) -> Part:
        """Examples to train on."""
        return self._part("train")

    @cached_property
    def held_out(self) -> Part:
        """Examples to measure on."""
        return self._part("held_out")

    @property
    def tokenizer_folder(self) -> Path:
        """The folder with the saved tokenizer."""
        return self.folder / "tokenizer"

    @property
    def facts(self) -> dict[str, Any]:
        """How much there is, for environment.json."""
        counts = {"training_examples": len(self.train), "held_out_examples": len(self.held_out)}
        return counts | {"truncated": self.truncated, "majority": self.majority}

    def note(self, length: int) -> str:
        """That inputs were cut at so many tokens, in words; empty if none were."""
        counts = {"training": len(self.train), "held-out": len(self.held_out)}
        cut = zip(counts.items(), self.truncated.values(), strict=True)
        told = [f"{some:,} of {count:,} {part}" for (part, count), some in cut if some]
        return f"{' and '.join(told)} inputs were cut at {length} tokens (data.sequence_length)" if told else ""

    def _part(self, name: str) -> Part:
        files = (self.folder / f"{name}.{what}.npy" for what in ("ids", "ends", "labels"))
        return Part(*(np.lib.format.open_memmap(file, mode="r") for file in files))  # which reads no pickle


def open_examples(task: Task, data: Data, cache: Path, *, text_to_text: bool) -> Examples:
    """The examples of a task as a token folder below `cache`, made on first use; `text_to_text` for a T5.

    Raises BadInput, naming field, split and row, for what is missing or is no example of the task.
    """
    rows, used = example_rows.of(task, data), documents.tokenizer_identity(data)
    facts = [FORMAT, asdict(task), rows.identity, used, data.vocabulary, data.sequence_length, text_to_text]
    folder = cache / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    token_folder.made_once(folder, lambda making: _make(task, data, rows, making, text_to_text))
    return Examples(folder, **files.read_json(folder / "examples.json"))


def _make(task: Task, data: Data, rows: Rows, making: Path, text_to_text: bool) -> None:
    """Fill a token folder: both parts, the tokenizer, and what `Examples` says of them."""
    used = _tokenizer(data, rows, text_to_text)
    end, pad = used.eos_token_id, used.pad_token_id
    vocab_size = data.vocabulary or len(used)
    reader = _Reader(task, used, data.sequence_length, text_to_text)
    tokenizer.require_within(vocab_size, np.array([pad, *([] if end is None else [end])]), used)
    targets = reader.targets()
    sha256 = hashlib.sha256(json.dumps([vocab_size, targets]).encode())
    truncated, majority = {}, None
    for name, part in (("train", rows.train()), ("held_out", rows.held_out())):
        with token_folder.bar(f"examples ({name})", "example") as bar:
            arrays, truncated[name] = _arrays(reader, part, vocab_size, bar.update)
        for what, array in arrays.items():
            np.save(making / f"{name}.{what}.npy", array)
            sha256.update(array.data)
        if name == "held_out" and not task.is_regression:
            majority = int(np.unique_counts(arrays["labels"]).counts.max()) / len(arrays["labels"])
    used.save_pretrained(making / "tokenizer")
    about = {
        "vocab_size": vocab_size,
        "text_sha256": sha256.hexdigest(),
        "eos_token_id": end,
        "pad_token_id": pad,
        "targets": targets,
        "truncated": truncated,
        "majority": majority,
    }
    (making / "examples.json").write_text(json.dumps(about))


def _tokenizer(data: Data, rows: Rows, text_to_text: bool) -> "PreTrainedTokenizerBase":
    """The tokenizer, with a token that pads; for a T5 with one that ends a text, too."""
    if data.tokenizer == "bpe":
        assert data.vocabulary is not None
        texts = (text for row in rows.train() for text in row.texts)
        used = tokenizer.train_bpe(texts, data.vocabulary, pad=PAD if text_to_text else None)
    else:
        used = tokenizer.byte_tokenizer() if data.tokenizer == "bytes" else tokenizer.load(data.tokenizer)
        if tokenizer.is_of_bytes(used):
            return tokenizer.byte_tokenizer(pad=PAD, end=END if text_to_text else None)
    named, needs = f"data.tokenizer: {data.tokenizer}: has no", "token; a T5 takes 'bytes', 'bpe' or its own"
    require(not text_to_text or used.eos_token_id is not None, f"{named} end-of-sequence {needs}")
    require(not text_to_text or used.pad_token_id is not None, f"{named} padding {needs}")
    if used.pad_token_id is None:
        used.pad_token = used.eos_token or used.convert_ids_to_tokens(0)
    return used


@dataclass(frozen=True)
class _Reader:
    """What a model reads of an example, and what a T5 writes."""

    task: Task
    tokenizer: "PreTrainedTokenizerBase"
    length: int
    text_to_text: bool

    @cached_property
    def of_bytes(self) -> bool:
        """Are there texts that it cannot read?"""
        return tokenizer.is_of_bytes(self.tokenizer)

    @property
    def end(self) -> int | None:
        """The token after each text. What pads ends nothing: of a text's end, it would be taken for padding."""
        end: int | None = self.tokenizer.eos_token_id
        return end if self.text_to_text or end != self.tokenizer.pad_token_id else None

    def inputs(self, rows: list[Row]) -> tuple[list[list[int]], int]:
        """Tokens of each row's input, and how many were cut. Raises BadInput, naming the row, for what has none."""
        texts = [self._texts(row) for row in rows]
        ids = iter(tokenizer.encode_each(self.tokenizer, [text for several in texts for text in several]))
        ends = [] if self.end is None else [self.end]
        found, cut = [], 0
        for row, several in zip(rows, texts, strict=True):
            tokens = [token for _ in several for token in (*next(ids), *ends)]
            require(bool(tokens), f"{row.where}: is empty: the tokenizer makes no token of it")
            cut += len(tokens) > self.length
            found.append(tokens if len(tokens) <= self.length else [*tokens[: self.length - len(ends)], *ends])
        return found, cut

    def targets(self) -> list[list[int]]:
        """Tokens of each text that a T5 may write. Raises BadInput where two are the same."""
        if not self.text_to_text:
            return []
        texts = self.task.targets
        found = [[*ids, self.tokenizer.eos_token_id] for ids in tokenizer.encode_each(self.tokenizer, [*texts])]
        for number, ids in enumerate(found):
            same = texts[found.index(ids)]
            require(
                found.index(ids) == number,
                f"data.tokenizer: makes the same tokens of the labels '{same}' and '{texts[number]}'",
            )
        return found

    def _texts(self, row: Row) -> list[str]:
        if self.of_bytes:
            for byte in ("\0", "\1"):
                require(
                    not any(byte in text for text in row.texts), f"{row.where}: is binary (has a byte {ord(byte)})"
                )
        if self.text_to_text:
            return [self.task.prompt(row.texts)]
        return ["\n".join(row.texts)] if self.end is None else [*row.texts]


def _arrays(
    reader: _Reader, part: Iterator[Row], vocab_size: int, progress: Callable[[int], Any]
) -> tuple[dict[str, np.ndarray], int]:
    """What a `Part` has, and how many inputs were cut."""
    ids, ends, labels, cut = [], list[int](), list[float](), 0
    while rows := list(islice(part, AT_ONCE)):
        inputs, more = reader.inputs(rows)
        tokens = np.fromiter(chain.from_iterable(inputs), np.int64)
        tokenizer.require_within(vocab_size, tokens, reader.tokenizer)
        ids.append(tokens.astype(tokenizer.token_type(vocab_size)))
        ends += map(len, inputs)
        labels += [row.label for row in rows]
        cut += more
        progress(len(rows))
    return {
        "ids": np.concatenate(ids),
        "ends": np.cumsum(ends, dtype=np.int64),
        "labels": np.array(labels, np.float32),
    }, cut
