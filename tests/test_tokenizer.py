"""Tokenizers: bytes and back, a BPE that is the same every time, what opens with AutoTokenizer, what is refused."""

import argparse
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from relora_lab import tokenizer
from relora_lab.errors import BadInput

BYTES = tokenizer.byte_tokenizer()
TEXTS = Path(argparse.__file__).read_text().split("\n\n")
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def bpe():
    return tokenizer.train_bpe(TEXTS, 400)


@given(text=TEXT)
def test_byte_ids_are_bytes_and_come_back(text):
    ids = BYTES(text)["input_ids"]
    assert ids == list(text.encode())
    assert BYTES.decode(ids) == text


def test_the_byte_tokenizer_has_the_256_bytes_and_nothing_else():
    assert len(BYTES) == 256
    assert sorted(BYTES.get_vocab().values()) == list(range(256))
    assert BYTES.all_special_ids == []
    assert BYTES("é\n x")["input_ids"] == list("é\n x".encode())


@given(texts=st.lists(TEXT, min_size=1, max_size=5))
def test_bpe_texts_come_back_and_are_each_followed_by_the_end(bpe, texts):
    ids = tokenizer.encode(bpe, texts, "\n")
    [ends] = np.nonzero(ids == bpe.eos_token_id)
    parts = np.split(ids, ends + 1)
    assert len(parts.pop()) == 0
    assert [bpe.decode(part[:-1]) for part in parts] == texts


def test_a_bpe_has_the_asked_size_and_is_the_same_every_time(bpe):
    assert len(bpe) == 400
    assert bpe.convert_ids_to_tokens(bpe.eos_token_id) == "<|endoftext|>"
    again = tokenizer.train_bpe(iter(TEXTS), 400)
    assert again.backend_tokenizer.to_str() == bpe.backend_tokenizer.to_str()
    assert len(tokenizer.encode(bpe, TEXTS, "")) < 0.6 * len("".join(TEXTS))


def test_a_bpe_reads_no_more_text_than_it_may():
    taken = []
    tokenizer.train_bpe((taken.append(text) or text for text in TEXTS), 300, most_bytes=5000)
    assert 5000 <= len("".join(taken).encode()) < 5000 + len(taken[-1].encode())


def test_a_text_too_small_for_the_vocabulary_is_refused_with_what_it_has():
    with pytest.raises(BadInput, match=r"data.vocab_size: the text makes a BPE of \d+ entries at most \(got 4096\)"):
        tokenizer.train_bpe(["one two one two"], 4096)


def test_what_looks_like_a_special_token_is_text(bpe):
    ids = tokenizer.encode(bpe, ["a<|endoftext|>b"], "")
    assert (ids == bpe.eos_token_id).sum() == 1
    assert bpe.decode(ids[:-1]) == "a<|endoftext|>b"


def test_without_an_end_the_separator_follows_each_text():
    assert bytes(tokenizer.encode(BYTES, ["é", "", "b"], "\n").astype(np.uint8)) == "é\n\nb\n".encode()


@pytest.mark.parametrize("which", ["bytes", "bpe"])
def test_a_saved_tokenizer_opens_and_says_nothing_of_this_machine(tmp_path, bpe, which):
    made = BYTES if which == "bytes" else bpe
    made.save_pretrained(tmp_path / "saved")
    text = " A  class's\tname,\n\n é 𝄞 \0."
    for opened in (AutoTokenizer.from_pretrained(tmp_path / "saved"), tokenizer.load(str(tmp_path / "saved"))):
        assert opened(text)["input_ids"] == made(text)["input_ids"]
        assert opened.decode(opened(text)["input_ids"]) == text
        assert (len(opened), opened.eos_token_id) == (len(made), made.eos_token_id)
    assert all(str(tmp_path) not in path.read_text() for path in (tmp_path / "saved").iterdir())


def test_tokenizers_that_cannot_be_loaded_are_refused_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    for name in (str(tmp_path / "empty"), str(tmp_path / "nowhere"), "nobody/nothing"):
        with pytest.raises(BadInput, match=rf"^data.tokenizer: {name}: cannot be loaded \(") as caught:
            tokenizer.load(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "name"), [(1, "u1"), (256, "u1"), (257, "<u2"), (65536, "<u2"), (65537, "<u4"), (2**31, "<u4")]
)
def test_the_smallest_type_that_holds_the_vocabulary(size, name):
    assert tokenizer.token_type(size) == np.dtype(name)
    assert np.iinfo(name).max >= size - 1
