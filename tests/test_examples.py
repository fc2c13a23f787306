"""Examples: what a model reads of a row, what pads and ends it, and the folder that keeps it."""

import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from glue_files import LLAMAS, RTE, offline, opener, text
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from relora_lab import examples, tokenizer
from relora_lab.errors import BadInput
from relora_lab.example_rows import Row
from relora_lab.settings import Data
from relora_lab.tasks import TASKS

ENDS = {"eos_token": "<|endoftext|>"}
ENDS_AND_PADS = {**ENDS, "pad_token": "a"}


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """`opener`, and no copies of what lies here."""
    offline(tmp_path, monkeypatch)
    yield opener(tmp_path)
    assert not (tmp_path / "home").exists()


TEXTS = [" ".join(row["sentence1"] for row in RTE[i:]) for i in range(20)]


def hugging_face(path, **special):
    """A tokenizer of another make, with the special tokens of that name."""
    used = tokenizer.train_bpe([" ".join(("entail ment not_entailment rte sentence1 sentence2", *TEXTS))] * 3, 300)
    fresh = used.__class__(tokenizer_object=used.backend_tokenizer, **special)
    fresh.save_pretrained(path)
    return str(path)


def test_a_t5_reads_the_prompt_and_its_end(opened):
    found = opened(train=RTE, held_out=RTE, text_to_text=True)
    assert (found.vocab_size, found.eos_token_id, found.pad_token_id) == (256, 1, 0)
    for index in (0, 17):
        prompt = TASKS["rte"].prompt((RTE[index]["sentence1"], RTE[index]["sentence2"]))
        assert found.train.tokens(index).tolist() == [*prompt.encode(), 1]
    assert found.targets == [[*b"entailment", 1], [*b"not_entailment", 1]]
    saved = AutoTokenizer.from_pretrained(found.tokenizer_folder)
    assert (saved.eos_token_id, saved.pad_token_id, len(saved)) == (1, 0, 256)
    assert saved(["ab", "é"], padding=True)["input_ids"] == [[97, 98], list("é".encode())]
    assert saved.decode(found.targets[1], skip_special_tokens=True) == "not_entailment"


def test_a_llama_of_bytes_reads_lines_without_an_end(opened):
    found = opened(train=RTE, held_out=RTE)
    assert (found.eos_token_id, found.pad_token_id, found.targets) == (None, 0, [])
    saved = AutoTokenizer.from_pretrained(found.tokenizer_folder)
    assert (saved.eos_token_id, saved.pad_token_id) == (None, 0)
    assert saved(["abc", "d"], padding=True)["input_ids"] == [[97, 98, 99], [100, 0, 0]]
    assert saved("āĀ")["input_ids"] == list("āĀ".encode())  # no special token is text that people write


def test_a_llama_reads_an_end_after_each_text(tmp_path, opened):
    name = hugging_face(tmp_path / "own", **ENDS_AND_PADS)
    found = opened(train=RTE, held_out=RTE, tokenizer=name)
    saved = AutoTokenizer.from_pretrained(found.tokenizer_folder)
    end = saved.eos_token_id
    assert found.eos_token_id == end == 0
    assert found.pad_token_id == saved.pad_token_id != end
    tokens = found.train.tokens(8).tolist()
    assert [i for i, token in enumerate(tokens) if token == end] == [tokens.index(end), len(tokens) - 1]
    assert saved.decode(tokens[: tokens.index(end)]) == RTE[8]["sentence1"]
    assert saved.decode(tokens[tokens.index(end) + 1 : -1]) == RTE[8]["sentence2"]


def test_what_pads_ends_nothing_for_a_llama(tmp_path, opened):
    """Else its head would look for the last token before it."""
    name = hugging_face(tmp_path / "own", **ENDS)
    for fields in ({"tokenizer": name}, {"tokenizer": "bpe", "vocab_size": 270}):
        found = opened(train=RTE, held_out=RTE, **fields)
        saved = AutoTokenizer.from_pretrained(found.tokenizer_folder)
        assert found.eos_token_id == found.pad_token_id == saved.pad_token_id == 0
        assert saved.decode(found.train.tokens(8)) == f"{RTE[8]['sentence1']}\n{RTE[8]['sentence2']}"
    bare = hugging_face(tmp_path / "bare")
    assert opened(train=RTE, held_out=RTE, tokenizer=bare).pad_token_id == 0


def test_a_bpe_for_a_t5_pads_and_ends(opened):
    found = opened(train=RTE, held_out=RTE, text_to_text=True, tokenizer="bpe", vocab_size=270)
    assert (found.vocab_size, found.eos_token_id, found.pad_token_id, found.train.ids.dtype) == (270, 0, 1, np.uint16)
    saved = AutoTokenizer.from_pretrained(found.tokenizer_folder)
    assert (saved.eos_token, saved.pad_token) == ("<|endoftext|>", "<pad>")
    assert all(found.train.tokens(index)[-1] == 0 for index in range(40))
    assert [saved.decode(ids[:-1]) for ids in found.targets] == list(TASKS["rte"].labels)


def test_bytes_that_an_earlier_run_saved_get_what_a_t5_needs(tmp_path, opened):
    tokenizer.byte_tokenizer().save_pretrained(tmp_path / "saved")
    given = opened(train=RTE, held_out=RTE, text_to_text=True, tokenizer=str(tmp_path / "saved"))
    made = opened(text_to_text=True)
    assert given.text_sha256 == made.text_sha256
    again = opened(text_to_text=True, tokenizer=str(given.tokenizer_folder))
    assert (again.eos_token_id, again.pad_token_id, again.text_sha256) == (1, 0, made.text_sha256)
    assert opened(tokenizer=str(given.tokenizer_folder)).eos_token_id is None


@pytest.mark.parametrize(("special", "missing"), [({}, "end-of-sequence"), ({"eos_token": "a"}, "padding")])
def test_a_t5_is_refused_a_tokenizer_that_cannot_end_or_pad(tmp_path, opened, special, missing):
    name = hugging_face(tmp_path / "own", **special)
    with pytest.raises(
        BadInput, match=rf"^data.tokenizer: {name}: has no {missing} token; a T5 takes 'bytes', 'bpe'"
    ):
        opened(train=RTE, held_out=RTE, text_to_text=True, tokenizer=name)


def test_what_looks_like_a_special_token_is_text(tmp_path, opened):
    name = hugging_face(tmp_path / "own", **ENDS_AND_PADS)
    rows = [{**RTE[0], "sentence1": "a<|endoftext|>b"}]
    for fields in ({"tokenizer": name}, {"text_to_text": True}):
        found = opened(train=rows, held_out=RTE, **fields)
        tokens = found.train.tokens(0).tolist()
        assert tokens.count(found.eos_token_id) == (1 if fields.get("text_to_text") else 2)
    rows[0]["sentence1"] = "a</s>b<pad>"
    tokens = opened(train=rows, text_to_text=True).train.tokens(0).tolist()
    assert b"a</s>b<pad>" in bytes(tokens)


def test_a_vocabulary_that_is_too_small_is_refused_as_of_a_corpus(tmp_path, opened):
    name = hugging_face(tmp_path / "own", **ENDS)
    message = (
        r"^data.vocab_size: the text has token 2\d\d \('.*'\), beyond a vocabulary of 257; the tokenizer has 300$"
    )
    with pytest.raises(BadInput, match=message):
        opened(train=RTE, held_out=RTE, tokenizer=name, vocab_size=257)
    assert opened(train=RTE, held_out=RTE, tokenizer=name, vocab_size=70_000).train.ids.dtype == np.uint32


def test_a_tokenizer_to_which_labels_are_the_same_is_refused(tmp_path, opened):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "<pad>": 2}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(tmp_path / "own")
    with pytest.raises(BadInput, match=r"^data.tokenizer: makes the same tokens of the labels 'entailment' and"):
        opened(train=RTE, held_out=RTE, text_to_text=True, tokenizer=str(tmp_path / "own"))


@given(
    rows=st.lists(
        st.tuples(st.text("aé\n ", min_size=1, max_size=30), st.text("bc", max_size=30)), min_size=1, max_size=9
    ),
    length=st.integers(2, 40),
    text_to_text=st.booleans(),
)
def test_an_input_is_the_whole_or_its_beginning_and_the_end_stays(rows, length, text_to_text):
    end = "</s>" if text_to_text else None
    reader = examples._Reader(TASKS["rte"], tokenizer.byte_tokenizer(pad="<pad>", end=end), length, text_to_text)
    inputs, cut = reader.inputs([Row(texts, 0, "") for texts in rows])
    ends = [1] if text_to_text else []
    whole = [(TASKS["rte"].prompt(texts) if text_to_text else "\n".join(texts)).encode() for texts in rows]
    assert cut == sum(len(content) + len(ends) > length for content in whole)
    for tokens, content in zip(inputs, whole, strict=True):
        kept = tokens[:-1] if text_to_text else tokens
        assert tokens == [*kept, *ends]
        assert bytes(kept) == content[: length - len(ends)]


def test_inputs_that_were_cut_are_counted(opened):
    long = [{**row, "sentence2": "x" * 100} for row in RTE[:3]]
    found = opened(train=[*long, *RTE], held_out=[*RTE, long[0]], sequence_length=80, text_to_text=True)
    assert found.truncated == {"train": 3, "held_out": 1}
    counts = f"3 of {len(RTE) + 3} training and 1 of {len(RTE) + 1} held-out"
    assert found.note(80) == f"{counts} inputs were cut at 80 tokens (data.sequence_length)"
    assert [len(found.train.tokens(i)) for i in range(3)] == [80] * 3
    assert found.train.tokens(0)[-1] == found.eos_token_id


def test_many_examples_are_read_in_order(opened, monkeypatch):
    monkeypatch.setattr(examples, "AT_ONCE", 7)
    found = opened(train=RTE, held_out=RTE)
    assert [text(found.train, i) for i in range(40)] == LLAMAS


def test_examples_of_one_class_are_taken(opened):
    found = opened(train=[{**row, "label": 0} for row in RTE], held_out=[{**row, "label": 0} for row in RTE])
    assert found.majority == 1.0


def test_the_embedded_task_needs_no_network_and_no_datasets(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    found = examples.open_examples(TASKS["packages"], Data(), tmp_path / "tokens", text_to_text=True)
    assert len(found.train) > 3000
    assert len(found.held_out) > 400
    assert found.majority == 1 / 6
    assert text(found.train, 0).startswith("packages snippet: ")
    assert bytes(found.targets[0]) == b"asyncio\1"


def test_examples_are_made_once_and_again_when_anything_changes(tmp_path, opened, monkeypatch):
    made, make = [], examples._make
    monkeypatch.setattr(examples, "_make", lambda *arguments: made.append(1) or make(*arguments))
    name = hugging_face(tmp_path / "own", **ENDS_AND_PADS)
    opened(train=RTE, held_out=RTE)
    different = [
        {},
        {"text_to_text": True},
        {"sequence_length": 20},
        {"tokenizer": name},
        {"tokenizer": name, "vocab_size": 512},
        {"tokenizer": "bpe", "vocab_size": 270},
    ]
    hashes = set()
    for number, fields in enumerate(different, 1):
        hashes |= {opened(**fields).text_sha256 for _ in range(2)}
        assert len(made) == number
    assert len(hashes) == len(different)
    hashes.add(opened(held_out=[*RTE[:-1], {**RTE[-1], "label": 0}]).text_sha256)
    hashes.add(opened("mrpc", RTE, RTE, text_to_text=True).text_sha256)
    monkeypatch.setattr(examples, "FORMAT", examples.FORMAT + 1)
    opened()
    assert len(made) == len(different) + 3
    assert len(hashes) == len(different) + 2


def test_a_changed_task_is_read_again(tmp_path, opened):
    found = opened(train=RTE, held_out=RTE)
    turned = replace(TASKS["rte"], columns=("sentence2", "sentence1"))
    again = examples.open_examples(
        turned, Data(dataset=str(tmp_path / "glue")), tmp_path / "tokens", text_to_text=False
    )
    assert again.folder != found.folder
    assert text(again.train, 3) == "It is 3.\nNumber 3 is é."


@pytest.mark.parametrize(
    "name", ["train.ids.npy", "held_out.labels.npy", "examples.json", "tokenizer/tokenizer.json"]
)
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_folder_is_refused_by_its_file(opened, name, damage):
    path = opened(train=RTE, held_out=RTE).folder / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with pytest.raises(BadInput, match=rf"{re.escape(str(path))}: is .*; remove {path.parents[name.count('/')]}"):
        opened()


def test_of_several_who_want_the_same_examples_one_makes_them(tmp_path, opened, monkeypatch):
    opened(train=RTE, held_out=RTE)
    made, make = [], examples._make

    def slowly(*arguments):
        made.append(1)
        time.sleep(0.2)
        make(*arguments)

    monkeypatch.setattr(examples, "_make", slowly)
    data = Data(dataset=str(tmp_path / "glue"))
    with ThreadPoolExecutor(3) as pool:
        jobs = [
            pool.submit(examples.open_examples, TASKS["rte"], data, tmp_path / "again", text_to_text=True)
            for _ in range(3)
        ]
    assert len({job.result().text_sha256 for job in jobs}) == len(made) == 1
    assert len(list((tmp_path / "again").iterdir())) == 1
