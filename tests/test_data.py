"""Corpora and batches: what is held out, what a batch depends on, what is refused."""

import argparse
import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relora_lab import data, tokenizer
from relora_lab.data import Batches, Corpus, held_out_batches, open_corpus
from relora_lab.documents import Documents
from relora_lab.errors import BadInput
from relora_lab.settings import Data


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


# ---- tokenizers and datasets

TEXTS = [f"Document {i} tells of é and {'of things ' * (i % 7)}.\n" for i in range(300)]
BPE = tokenizer.train_bpe(TEXTS, 300)


def shards(path, *, parts=None, **fields):
    """Settings of a dataset of one or two splits, written here."""
    path.mkdir(exist_ok=True)
    for split, texts in (parts or {"train": TEXTS, "validation": TEXTS[:50]}).items():
        (path / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Data(dataset=str(path), **fields)


def test_bytes_of_files_are_named_by_their_text_and_joined_without_anything(tmp_path):
    texts = folder_of_texts(tmp_path / "texts")
    corpus = open_corpus(str(texts), tmp_path / "tokens", sequence_length=8)
    train, held_out = bytes(corpus.train), bytes(corpus.held_out)
    assert corpus.text_sha256 == hashlib.sha256(train + b"\0" + held_out).hexdigest()
    paths = sorted(texts.iterdir())
    assert train == b"".join(path.read_bytes() for path in paths if path.read_bytes() in train)
    assert held_out == b"".join(path.read_bytes() for path in paths if path.read_bytes() in held_out)
    assert len(train) + len(held_out) == sum(path.stat().st_size for path in paths)
    # As it was before there were other tokenizers.
    assert corpus.text_sha256 == "a114e9d8934e01dd07413b829dcf895a818a6513539dfb9191ae7364fd88cfc6"


def test_the_cut_of_one_file_leaves_characters_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("aé€𝄞" * 30)
    corpus = open_corpus(str(path), tmp_path / "tokens", sequence_length=4)
    parts = [bytes(part).decode() for part in (corpus.train, corpus.held_out)]
    assert "".join(parts) == "aé€𝄞" * 30
    assert 15 <= len(corpus.held_out) < 15 + 4


@given(
    texts=st.lists(st.text("abé\n ", max_size=12), max_size=12),
    limit=st.none() | st.integers(1, 60),
    at_once=st.integers(1, 30),
    which=st.sampled_from(["bytes", "bpe"]),
)
def test_tokens_are_those_of_the_documents_in_order_whatever_is_done_at_once(texts, limit, at_once, which):
    settings = Data(tokenizer=which, vocab_size=None if which == "bytes" else 300)
    used = tokenizer.byte_tokenizer() if which == "bytes" else BPE
    taken = []
    reading = (taken.append(text) or text for text in texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "BATCH_BYTES", at_once)
        found = list(data._encoded(settings, used, len(used), "\n", reading, limit))
    each = [list(tokenizer.encode(used, [text], "\n")) for text in texts]
    assert [int(token) for part in found for token in part] == [token for ids in each for token in ids][:limit]
    assert {part.dtype for part in found} <= {tokenizer.token_type(len(used))}
    if limit is not None:  # no document is taken that is not needed
        assert sum(len(ids) for ids in each[: max(len(taken) - 1, 0)]) < limit


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_gives_the_tokens_it_is_asked_for(tmp_path, streaming):
    everything = "\n".join([*TEXTS, ""]).encode()
    limits = {"streaming": streaming, "max_tokens": 3000}
    corpus = open_corpus(shards(tmp_path / "d", **limits), tmp_path / "tokens", sequence_length=8)
    assert bytes(corpus.train) == everything[:3000]
    assert bytes(corpus.held_out) == everything[: 3000 // 20]
    longer = open_corpus(shards(tmp_path / "d", **limits), tmp_path / "tokens", sequence_length=64)
    assert bytes(longer.held_out) == everything[: 16 * 64]  # a few sequences
    whole = open_corpus(shards(tmp_path / "d"), tmp_path / "tokens", sequence_length=8)
    assert bytes(whole.train) == everything


def test_a_bpe_learns_from_the_training_part_alone(tmp_path):
    parts = {"train": TEXTS, "validation": ["zyzzyva " * 500]}
    settings = shards(tmp_path / "d", parts=parts, tokenizer="bpe", vocab_size=300)
    corpus = open_corpus(settings, tmp_path / "tokens", sequence_length=8)
    assert (corpus.vocab_size, corpus.train.dtype, corpus.eos_token_id) == (300, np.uint16, 0)
    opened = tokenizer.load(str(corpus.tokenizer_folder))
    assert opened.backend_tokenizer.to_str() == BPE.backend_tokenizer.to_str()
    assert opened.decode(corpus.train) == "<|endoftext|>".join([*TEXTS, ""])
    assert opened.decode(corpus.held_out) == "zyzzyva " * 500 + "<|endoftext|>"


def test_files_too_are_each_followed_by_the_end(tmp_path):
    texts = folder_of_texts(tmp_path / "texts")
    settings = Data(corpus=str(texts), tokenizer="bpe", vocab_size=270)
    corpus = open_corpus(settings, tmp_path / "tokens", sequence_length=8)
    assert int((corpus.train == 0).sum() + (corpus.held_out == 0).sum()) == 200
    assert corpus.train[-1] == corpus.held_out[-1] == 0


def test_a_tokenizer_of_a_folder_and_the_vocabulary_of_the_model(tmp_path):
    BPE.save_pretrained(tmp_path / "saved")
    settings = {"corpus": argparse.__file__, "tokenizer": str(tmp_path / "saved")}
    sizes = {None: "<u2", 512: "<u2", 70_000: "<u4"}
    made = [open_corpus(Data(**settings, vocab_size=size), tmp_path / "tokens", sequence_length=8) for size in sizes]
    assert [corpus.vocab_size for corpus in made] == [300, 512, 70_000]
    assert [corpus.train.dtype for corpus in made] == [np.dtype(kind) for kind in sizes.values()]
    assert len({corpus.text_sha256 for corpus in made}) == 3
    assert all(np.array_equal(corpus.train, made[0].train) for corpus in made)
    with pytest.raises(
        BadInput, match=r"data.vocab_size: the text has token 2\d\d \('.*'\), beyond a vocabulary of 257"
    ):
        open_corpus(Data(**settings, vocab_size=257), tmp_path / "other", sequence_length=8)
    assert not (tmp_path / "other").exists()


def test_tokens_are_made_once_and_again_when_anything_changes(tmp_path, monkeypatch):
    made, make = [], data._make
    monkeypatch.setattr(data, "_make", lambda *arguments: made.append(1) or make(*arguments))
    BPE.save_pretrained(tmp_path / "saved")
    corpora = []

    def opens(**fields):
        settings = shards(tmp_path / "d", **fields) if "corpus" not in fields else Data(**fields)
        corpora.append(open_corpus(settings, tmp_path / "tokens", sequence_length=8))
        return len(made)

    (tmp_path / "d").mkdir()
    text = tmp_path / "a.txt"
    text.write_text("".join(TEXTS))
    different = [
        {"corpus": str(text)},
        {"corpus": str(text), "tokenizer": "bpe", "vocab_size": 300},
        {"corpus": str(text), "tokenizer": "bpe", "vocab_size": 299},
        {"corpus": str(text), "tokenizer": str(tmp_path / "saved")},
    ]
    for number, fields in enumerate(different, 1):
        assert opens(**fields) == opens(**fields) == number
    assert len({corpus.text_sha256 for corpus in corpora}) == 4  # so are stages and comparisons kept apart
    tokenizer.train_bpe(TEXTS, 290).save_pretrained(tmp_path / "saved")
    assert opens(**different[-1]) == 5
    settings = shards(tmp_path / "d")
    for expected, length in ((6, 8), (6, 9)):  # the same token file serves every length
        open_corpus(settings, tmp_path / "tokens", sequence_length=length)
        assert len(made) == expected


def test_a_folder_of_the_format_before_is_not_read(tmp_path, monkeypatch):
    folders = []
    for version in (data.FORMAT, data.FORMAT + 1):
        monkeypatch.setattr(data, "FORMAT", version)
        folders.append(open_corpus(argparse.__file__, tmp_path, sequence_length=8).folder)
    assert folders[0] != folders[1]


def test_a_dataset_that_is_too_short_is_refused_by_its_field(tmp_path):
    with pytest.raises(BadInput, match=r"^data.dataset: the dataset has \d+ tokens, needs > sequence length 99999"):
        open_corpus(shards(tmp_path / "d"), tmp_path / "tokens", sequence_length=99999)
    assert not (tmp_path / "tokens").exists()
    settings = shards(tmp_path / "one", parts={"train": ["one document " * 100]})
    with pytest.raises(BadInput, match="held-out part of the dataset has 0 tokens"):
        open_corpus(settings, tmp_path / "tokens", sequence_length=8)


def test_documents_are_not_held_in_memory(tmp_path, monkeypatch):
    """At most one batch of them at a time."""
    held = []

    class Text(str):
        def __del__(self):
            held.remove(id(self))

    def reading():
        for number in range(200):
            text = Text(f"document {number} " * 10)
            held.append(id(text))
            yield text
            assert len(held) < 20

    monkeypatch.setattr(data, "BATCH_BYTES", 1000)
    found = Documents("dataset", [], "\n", reading, lambda: iter(TEXTS))
    limits = {"train": None, "held_out": None}
    data._make(Data(), found, limits, tmp_path, 8)
    assert (tmp_path / "train.bin").stat().st_size == sum(len(f"document {n} " * 10) + 1 for n in range(200))


def test_of_several_who_want_the_same_tokens_one_makes_them(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("some text, long enough " * 50)
    key_folder = data.open_corpus(str(tmp_path / "text.txt"), tmp_path / "tokens", sequence_length=8).folder
    cache = tmp_path / "again"
    cache.mkdir()
    (cache / f".{key_folder.name}-killed").mkdir()  # what a killed process left
    made, make = [], data._make

    def slowly(*arguments):
        made.append(arguments)
        time.sleep(0.3)
        make(*arguments)

    monkeypatch.setattr(data, "_make", slowly)
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(data.open_corpus, str(tmp_path / "text.txt"), cache, sequence_length=8) for _ in range(3)]
    assert len({job.result().text_sha256 for job in jobs}) == 1
    assert len(made) == 1
    assert [path.name for path in cache.iterdir()] == [key_folder.name]
