"""Corpora and batches: what is held out, what a batch depends on, what is refused."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relora_lab.data import Batches, Corpus, held_out_batches, open_corpus
from relora_lab.errors import BadInput


class Tokens(Corpus):
    """Tokens that count upwards."""

    def __init__(self, n: int) -> None:
        self.__dict__.update(train=np.arange(n), held_out=np.arange(n), vocab_size=n)


def folder_of_texts(path, count=200):
    path.mkdir()
    for i in range(count):
        (path / f"{i:03d}.txt").write_text(f"file {i} says ü and {'x' * (i % 7)}\n")
    return path


def test_stdlib_is_this_pythons_own_source(tmp_path):
    corpus = open_corpus("stdlib", tmp_path / "tokens", sequence_length=64)
    text = bytes(corpus.train) + bytes(corpus.held_out)
    assert 5e6 < len(text) < 2e7
    assert 0.02 < len(corpus.held_out) / len(text) < 0.09
    assert b"class ArgumentParser" in text
    assert b"class IdleConf" not in text  # idlelib/config.py
    assert b"class SkipTest" in text  # unittest is no test folder
    assert corpus.vocab_size == 256
    again = open_corpus("stdlib", tmp_path / "elsewhere", sequence_length=64)
    assert again.text_sha256 == corpus.text_sha256


def test_a_folder_is_split_by_file_and_the_split_does_not_move(tmp_path):
    texts = folder_of_texts(tmp_path / "texts")
    corpus = open_corpus(str(texts), tmp_path / "tokens", sequence_length=8)
    held_out = bytes(corpus.held_out).decode().splitlines()
    assert 1 <= len(held_out) <= 25
    assert len(bytes(corpus.train).decode().splitlines()) == 200 - len(held_out)
    (texts / "new.txt").write_text("one more file\n")
    grown = open_corpus(str(texts), tmp_path / "tokens", sequence_length=8)
    assert set(held_out) <= set(bytes(grown.held_out).decode().splitlines())
    assert grown.text_sha256 != corpus.text_sha256


def test_one_file_is_cut_before_its_last_twentieth(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(range(65, 85)) * 10)
    corpus = open_corpus(str(path), tmp_path / "tokens", sequence_length=4)
    assert (len(corpus.train), len(corpus.held_out)) == (190, 10)
    assert bytes(corpus.train) + bytes(corpus.held_out) == path.read_bytes()


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "a.txt"
    hashes = set()
    for word in ("one ", "four "):
        path.write_text(word * 100)
        hashes.add(open_corpus(str(path), tmp_path / "tokens", sequence_length=4).text_sha256)
    assert len(hashes) == 2


@given(
    n=st.integers(20, 400),
    length=st.integers(2, 9),
    batch_size=st.integers(1, 5),
    seed=st.integers(0, 5),
    step=st.integers(0, 200),
)
def test_a_batch_is_a_function_of_seed_and_step(n, length, batch_size, seed, step):
    made = [Batches(Tokens(n), batch_size=batch_size, sequence_length=length, seed=seed) for _ in range(2)]
    for earlier in range(0, step, 7):
        made[0](earlier)  # where one has been plays no part
    first, second = (batches(step) for batches in made)
    assert torch.equal(first, second)
    assert first.shape == (batch_size, length)
    assert first.dtype == torch.int64
    assert (first.diff(dim=1) == 1).all()  # neighbouring tokens of the text


@given(n=st.integers(30, 400), length=st.integers(2, 9), seed=st.integers(0, 5))
def test_an_epoch_repeats_no_token(n, length, seed):
    batches = Batches(Tokens(n), batch_size=1, sequence_length=length, seed=seed)
    seen = torch.cat([batches(step) for step in range(batches.per_epoch)]).flatten()
    assert len(seen.unique()) == len(seen)
    assert len(seen) > n - 2 * length - 1


def test_seeds_and_epochs_see_other_orders():
    batches = [Batches(Tokens(1000), batch_size=4, sequence_length=8, seed=s) for s in (0, 1)]
    assert not torch.equal(batches[0](0), batches[1](0))
    assert not torch.equal(batches[0](0), batches[0](batches[0].per_epoch))


@given(n=st.integers(10, 500), tokens=st.integers(1, 600), length=st.integers(2, 9))
def test_held_out_batches_are_distinct_sequences_up_to_the_asked_number(n, tokens, length):
    made = list(held_out_batches(Tokens(n), tokens=tokens, batch_size=3, sequence_length=length))
    rows = torch.cat(made)
    assert len(rows) == min(n // length, max(1, tokens // length))
    assert len(rows.flatten().unique()) == rows.numel()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "corpus has 0 tokens, needs > sequence length 128"),
        (b"x" * 57, "corpus has 57 tokens, needs > sequence length 128"),
        (b"x" * 500, "held-out part of the corpus has 25 tokens, needs > sequence length 128"),
        (b"abc\0" * 1000, "is binary"),
        (b"\xff\xfe" * 1000, "is not UTF-8 text"),
    ],
)
def test_a_corpus_that_cannot_serve_is_refused_before_anything_is_written(tmp_path, content, message):
    path = tmp_path / "corpus.txt"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        open_corpus(str(path), tmp_path / "tokens", sequence_length=128)
    assert not (tmp_path / "tokens").exists()


def test_missing_looping_and_empty_corpora_are_refused_by_name(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    (tmp_path / "empty").mkdir()
    for name, message in {"none": "No such file", "loop": "symbolic link", "empty": "holds no files"}.items():
        with pytest.raises(BadInput, match=f"{name}.*{message}"):
            open_corpus(str(tmp_path / name), tmp_path / "tokens", sequence_length=8)
    with pytest.raises(BadInput, match="null byte"):
        open_corpus("a\0b", tmp_path / "tokens", sequence_length=8)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="pipe: is neither a file nor a folder"):
        open_corpus(str(tmp_path / "pipe"), tmp_path / "tokens", sequence_length=8)
    folder = folder_of_texts(tmp_path / "texts")
    (folder / "loop.txt").symlink_to(folder / "loop.txt")
    with pytest.raises(BadInput, match=r"loop\.txt: cannot be read"):
        open_corpus(str(folder), tmp_path / "tokens", sequence_length=8)
