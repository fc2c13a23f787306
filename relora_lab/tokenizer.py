"""Text -> token ids: the bytes themselves, a BPE trained on the text, or any Hugging Face tokenizer.

All three are transformers tokenizers, so that what is saved beside a model opens with AutoTokenizer.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from relora_lab.errors import BadInput, one_line, require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END = "<|endoftext|>"
MOST_BPE_BYTES = 2**28  # of text that a BPE is trained on: more does not change its merges much, and takes memory


def byte_tokenizer(*, pad: str | None = None, end: str | None = None) -> "PreTrainedTokenizerBase":
    """Ids are bytes, 0 to 255; no special tokens but the given ones, in the places of bytes 0 (pad) and 1 (end)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = _byte_alphabet()
    for byte, special in enumerate((pad, end)):
        if special is not None:
            del alphabet[chr(256 + byte)]
            alphabet[special] = byte
    made = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=pad, eos_token=end)


def is_of_bytes(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Is it a `byte_tokenizer`, whatever its special tokens?"""
    found, alphabet = tokenizer.get_vocab(), _byte_alphabet()
    return len(found) == 256 and all(found.get(token) == byte for token, byte in alphabet.items() if byte > 1)


def train_bpe(
    texts: Iterable[str], vocab_size: int, *, most_bytes: int = MOST_BPE_BYTES, pad: str | None = None
) -> "PreTrainedTokenizerBase":
    """A byte-level BPE of `vocab_size` entries from the first `most_bytes` of the texts; END, its id 0, is one,
    and so is `pad`, its id 1, if one is given.

    The same texts give the same tokenizer. Raises BadInput where they are too few for so many entries.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END] if pad is None else [END, pad],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(_first(texts, most_bytes), trainer)
    found = made.get_vocab_size()
    require(
        found == vocab_size,
        f"data.vocab_size: the text makes a BPE of {found} entries at most (got {vocab_size}); set it to ≤ {found}",
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, pad_token=pad)


def load(name: str) -> "PreTrainedTokenizerBase":
    """A Hugging Face tokenizer by hub name or local folder; its own code, if it has any, is not run."""
    from transformers import AutoTokenizer

    local = Path(name).expanduser()
    try:
        return AutoTokenizer.from_pretrained(str(local) if local.is_dir() else name, trust_remote_code=False)
    except Exception as error:  # of the network, the hub, the files: they share no class
        raise BadInput(f"data.tokenizer: {name}: cannot be loaded ({one_line(error)})") from None


def encode(tokenizer: "PreTrainedTokenizerBase", texts: list[str], separator: str) -> np.ndarray:
    """Ids of the texts, 1-D int64; after each its end-of-sequence token, or the separator if there is none."""
    end = tokenizer.eos_token_id
    encoded = encode_each(tokenizer, texts if end is not None else [text + separator for text in texts])
    ends = [] if end is None else [end]
    return np.fromiter(chain.from_iterable((*ids, *ends) for ids in encoded), np.int64)


def encode_each(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[list[int]]:
    """Ids of each text. No special tokens: what looks like one in a text is text."""
    ids: list[list[int]] = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    return ids


def require_within(vocab_size: int, ids: np.ndarray, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise BadInput where one of the ids is beyond the vocabulary."""
    most = int(ids.max(initial=0))
    require(
        most < vocab_size,
        f"data.vocab_size: the text has token {most} ({tokenizer.convert_ids_to_tokens(most)!r}), beyond a "
        f"vocabulary of {vocab_size}; the tokenizer has {len(tokenizer)}",
    )


def token_type(vocab_size: int) -> np.dtype:
    """The smallest little-endian unsigned type that holds every id below `vocab_size`."""
    return next(t for t in map(np.dtype, ("u1", "<u2", "<u4")) if vocab_size <= 2 ** (8 * t.itemsize))


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level tokenizer, as GPT-2 has them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _first(texts: Iterable[str], most_bytes: int) -> Iterator[str]:
    for text in texts:
        yield text
        most_bytes -= len(text.encode())
        if most_bytes <= 0:
            return
