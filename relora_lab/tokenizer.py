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


def byte_tokenizer() -> "PreTrainedTokenizerBase":
    """Ids are bytes, 0 to 255; no special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(vocab=_byte_alphabet(), merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def train_bpe(
    texts: Iterable[str], vocab_size: int, *, most_bytes: int = MOST_BPE_BYTES
) -> "PreTrainedTokenizerBase":
    """A byte-level BPE of `vocab_size` entries from the first `most_bytes` of the texts; END, its id 0, is one.

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
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(_first(texts, most_bytes), trainer)
    found = made.get_vocab_size()
    require(
        found == vocab_size,
        f"data.vocab_size: the text makes a BPE of {found} entries at most (got {vocab_size}); set it to ≤ {found}",
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END)


def load(name: str) -> "PreTrainedTokenizerBase":
    """A Hugging Face tokenizer by hub name or local folder; its own code, if it has any, is not run."""
    from transformers import AutoTokenizer

    local = Path(name).expanduser()
    try:
        return AutoTokenizer.from_pretrained(str(local) if local.is_dir() else name, trust_remote_code=False)
    except Exception as error:  # of the network, the hub, the files: they share no class
        raise BadInput(f"data.tokenizer: {name}: cannot be loaded ({one_line(error)})") from None


def encode(tokenizer: "PreTrainedTokenizerBase", texts: list[str], separator: str) -> np.ndarray:
    """Ids of the texts, 1-D int64; after each its end-of-sequence token, or the separator if the tokenizer has none.

    No special tokens else: what looks like one in a text is text.
    """
    end = tokenizer.eos_token_id
    encoded = tokenizer(
        texts if end is not None else [text + separator for text in texts],
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    ends = [] if end is None else [end]
    return np.fromiter(chain.from_iterable((*ids, *ends) for ids in encoded["input_ids"]), np.int64)


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
