"""Documents: C4's layout here, splits, what is taken, and every dataset that is refused."""

import gzip
import json
import sys

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relora_lab import documents
from relora_lab.errors import BadInput
from relora_lab.settings import Data

TRAIN = [f"Document {i} is about {'é' * (i % 5)} things.\nAnd ends." for i in range(120)]
HELD_OUT = [f"Unseen {i}, " + "quite another matter. " * 20 for i in range(30)]


def write(path, texts):
    """Rows as C4 has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "https://a.b/c"} for text in texts]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text(lines)


@pytest.fixture(autouse=True)
def no_network_and_no_home(tmp_path, monkeypatch):
    for constants in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "home")
    yield
    assert not (tmp_path / "home").exists()


@pytest.fixture
def c4(tmp_path):
    write(tmp_path / "c4" / "en" / "c4-train.00000-of-00002.json.gz", TRAIN[:70])
    write(tmp_path / "c4" / "en" / "c4-train.00001-of-00002.json.gz", TRAIN[70:])
    write(tmp_path / "c4" / "en" / "c4-validation.00000-of-00001.json.gz", HELD_OUT)
    return tmp_path / "c4"


def of(dataset, **fields):
    return documents.of(Data(dataset=str(dataset), **fields))


@pytest.mark.parametrize("streaming", [False, True])
def test_c4s_layout_is_read_in_order_as_often_as_asked(c4, streaming):
    found = of(c4, subset="en", streaming=streaming, max_tokens=9999)
    for _ in range(2):
        assert list(found.train()) == TRAIN
        assert list(found.held_out()) == HELD_OUT
    assert (found.kind, found.separator) == ("dataset", "\n")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz", "a.parquet", "train.json"])
def test_a_file_and_a_folder_without_splits_hold_out_rows_by_number(tmp_path, name):
    write(tmp_path / "shards" / name, TRAIN)
    parts = []
    for source in (tmp_path / "shards", tmp_path / "shards" / name):
        found = of(source)
        train, held_out = list(found.train()), list(found.held_out())
        assert 1 <= len(held_out) <= 15
        assert sorted(train + held_out) == sorted(TRAIN)
        assert [text for text in TRAIN if text in held_out] == held_out
        parts.append(held_out)
    write(tmp_path / "shards" / name, [*TRAIN, "one more"])
    assert list(of(tmp_path / "shards").held_out())[: len(parts[0])] == parts[0] == parts[1]


def test_a_test_split_is_held_out_where_there_is_no_other(tmp_path):
    write(tmp_path / "shards" / "train.parquet", TRAIN)
    write(tmp_path / "shards" / "test.parquet", HELD_OUT)
    assert list(of(tmp_path / "shards").held_out()) == HELD_OUT
    assert list(of(tmp_path / "shards").train()) == TRAIN


def test_another_column(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"content": "x", "text": 3}\n' * 3)
    assert list(of(tmp_path / "a.jsonl", text_field="content").train()) == ["x"] * 3


def test_the_hub_is_asked_for_what_is_set(monkeypatch):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return {
            "train": datasets.Dataset.from_dict({"body": TRAIN}),
            "validation": datasets.Dataset.from_dict({"body": HELD_OUT}),
        }

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    for streaming in (False, True):
        found = of("allenai/c4", subset="en", text_field="body", streaming=streaming, max_tokens=9999)
        assert asked == []  # not before it is read
        assert (list(found.train()), list(found.held_out())) == (TRAIN, HELD_OUT)
        assert asked.pop() == (("allenai/c4", "en"), {"streaming": streaming})
        assert asked == []  # and once


def test_what_determines_documents_is_in_their_identity(c4):
    settings = [{}, {"subset": "en"}, {"text_field": "url"}, {"max_tokens": 999}, {"max_tokens": 998}]
    settings.append({"streaming": True, "max_tokens": 999})
    known = [json.dumps(of(c4, **fields).identity) for fields in settings]
    known.append(json.dumps(of("allenai/c4").identity))
    write(c4 / "en" / "c4-train.00001-of-00002.json.gz", TRAIN[71:])
    known.append(json.dumps(of(c4).identity))
    assert len(set(known)) == len(known)


def refused(message, dataset, **fields):
    with pytest.raises(BadInput, match=message) as caught:
        found = of(dataset, **fields)
        list(found.train()) + list(found.held_out())
    assert "\n" not in str(caught.value)


def test_datasets_that_cannot_be_loaded_are_refused_by_name(tmp_path, c4):
    refused(r"^data.dataset: allenai/c4: cannot be loaded \(.*allenai/c4", "allenai/c4", subset="en")
    refused(r"^data.dataset: .*nowhere: cannot be read \(No such file", tmp_path / "nowhere")
    refused(r"^data.subset: xx: cannot be loaded \(BuilderConfig 'xx' not found", c4, subset="xx")
    (tmp_path / "empty").mkdir()
    refused(r"^data.dataset: .*empty: cannot be loaded \(.*any data files", tmp_path / "empty")
    (tmp_path / "text.txt").write_text("text")
    refused(r"^data.dataset: .*text.txt: is no .json, .jsonl", tmp_path / "text.txt")
    write(tmp_path / "half" / "validation.jsonl", TRAIN)
    refused(r"^data.dataset: .*half: has no split 'train'; it has validation", tmp_path / "half")


def test_rows_that_are_no_text_are_refused_by_number(tmp_path):
    path = tmp_path / "a.jsonl"
    for value, kind in {"null": "null", "3": "int", '["a"]': "list"}.items():
        path.write_text('{"text": "a", "url": "b"}\n' * 2 + f'{{"text": {value}, "url": "b"}}\n')
        refused(rf"^data.dataset: .*a.jsonl: (text of row 2 is {kind}, not text|cannot be read)", path)
    refused(r"^data.text_field: no column 'body'; there are text, url", path, text_field="body")
    path.write_text('{"text": "a"}\n{"text": \n')
    refused(r"^data.dataset: .*a.jsonl: cannot be read \(JSON", path)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 10000)[:60])
    refused(r"^data.dataset: .*a.json.gz: cannot be", tmp_path / "a.json.gz")


def test_a_corpus_of_files_needs_no_datasets(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "a.txt").write_text("abc" * 100)
    found = documents.of(Data(corpus=str(tmp_path / "a.txt")))
    assert "".join([*found.train(), *found.held_out()]) == "abc" * 100
    assert found.separator == ""


@given(texts=st.lists(st.text("aé€𝄞\n", max_size=6), max_size=6), cut=st.integers(0, 60))
def test_a_cut_loses_nothing_and_no_character_is_cut(texts, cut):
    first, second = list(documents.before(texts, cut)), list(documents.after(texts, cut))
    assert "".join(first + second) == "".join(texts)
    size = len("".join(first).encode())
    assert size <= cut
    assert size == cut or size == len("".join(texts).encode()) or size > cut - 4
