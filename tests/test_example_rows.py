"""GLUE's columns from the hub, json and parquet, and every row that is refused."""

import datasets
import numpy as np
import pytest
from glue_files import LLAMAS, MNLI, RTE, STSB, offline, opener, text, write

from relora_lab import examples
from relora_lab.errors import BadInput
from relora_lab.settings import Data
from relora_lab.tasks import TASKS


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """`opener`, and no copies of what lies here."""
    offline(tmp_path, monkeypatch)
    yield opener(tmp_path)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("train.jsonl", "validation.jsonl"),
        ("train.parquet", "validation.parquet"),
        ("train.json.gz", "validation.parquet"),
        ("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"),
        ("train/a.jsonl.gz", "validation/b.json"),
        ("data/train.00000-of-00001.jsonl", "data/validation.jsonl"),
    ],
)
@pytest.mark.parametrize("below", ["rte", ""])
def test_local_files_of_glues_columns(tmp_path, opened, train, held_out, below):
    write(tmp_path / "glue" / below / train, RTE)
    write(tmp_path / "glue" / below / held_out, RTE[:7])
    (tmp_path / "glue" / below / "README.md").write_text("train")
    found = opened()
    assert (len(found.train), len(found.held_out)) == (40, 7)
    assert [text(found.train, i) for i in range(40)] == LLAMAS
    assert found.held_out.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert found.held_out.labels.dtype == np.float32
    assert found.majority == 4 / 7
    assert found.facts == {
        "training_examples": 40,
        "held_out_examples": 7,
        "truncated": {"train": 0, "held_out": 0},
        "majority": 4 / 7,
    }


def test_shards_are_read_in_order_and_test_splits_are_not(tmp_path, opened):
    hidden = [{**row, "label": -1} for row in RTE]
    for number, rows in enumerate((RTE[:15], RTE[15:])):
        write(tmp_path / "glue" / "rte" / f"train-0000{number}-of-00002.parquet", rows)
    write(tmp_path / "glue" / "rte" / "test-00000-of-00001.parquet", hidden)
    found = opened(held_out=RTE[:5])
    assert found.train.labels.tolist() == [row["label"] for row in RTE]
    assert text(found.train, 20).startswith("Number 20 ")


def test_mnli_holds_out_the_matched_part(tmp_path, opened):
    write(tmp_path / "glue" / "mnli" / "validation_mismatched.jsonl", MNLI)
    with pytest.raises(
        BadInput, match="has no split 'validation_matched'; it has train, validation_mismatched; it may be"
    ):
        opened("mnli", MNLI)
    write(tmp_path / "glue" / "mnli" / "validation_matched.jsonl", MNLI[:4])
    found = opened("mnli")
    assert len(found.held_out) == 4
    assert text(found.held_out, 3) == "H 3\nP 3"


def test_the_hub_is_asked_for_glue_and_the_task(tmp_path, monkeypatch):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return {split: datasets.Dataset.from_list(RTE) for split in ("train", "validation", "test")}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    for name in (None, "someone/glue"):
        data = Data(dataset=name)
        for _ in range(2):
            found = examples.open_examples(TASKS["rte"], data, tmp_path / "tokens", text_to_text=False)
        assert len(found.train) == 40
    assert asked == [(("nyu-mll/glue", "rte"), {}), (("someone/glue", "rte"), {})]


def test_without_the_hub_the_dataset_is_named(tmp_path):
    with pytest.raises(
        BadInput, match=r"^data.dataset: nyu-mll/glue \(a local copy can be named in its place\): cannot be loaded \("
    ) as caught:
        examples.open_examples(TASKS["rte"], Data(), tmp_path / "tokens", text_to_text=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tokens").exists()


def test_a_label_may_be_its_name_or_a_whole_number_with_a_point(opened):
    rows = [{**row, "label": ["entailment", "not_entailment"][row["label"]]} for row in RTE]
    by_name = opened(train=rows, held_out=[{**row, "label": float(row["label"])} for row in RTE])
    assert by_name.train.labels.tolist() == by_name.held_out.labels.tolist() == [row["label"] for row in RTE]


def test_labels_of_another_order_are_refused(tmp_path, opened):
    names = ["not_entailment", "entailment"]
    rows = datasets.Dataset.from_list(RTE).cast_column("label", datasets.ClassLabel(names=names))
    write(tmp_path / "glue" / "rte" / "validation.jsonl", RTE)
    rows.to_parquet(tmp_path / "glue" / "rte" / "train.parquet")
    message = r"labels of 'train' are not_entailment, entailment; rte has 0 \(entailment\), 1 \(not_entailment\)$"
    with pytest.raises(BadInput, match=message):
        opened()
    rows = rows.cast_column("label", datasets.ClassLabel(names=names[::-1]))
    rows.to_parquet(tmp_path / "glue" / "rte" / "train.parquet")
    assert opened().train.labels[:4].tolist() == [0, 1, 0, 1]


def test_numbers_are_kept_and_have_no_majority(opened):
    found = opened("stsb", STSB, STSB, text_to_text=True)
    assert found.train.labels.tolist() == [row["label"] for row in STSB]
    assert found.majority is None
    assert len(found.targets) == 26
    assert bytes(found.targets[19][:-1]) == b"3.8"


def refused(opened, message, **options):
    with pytest.raises(BadInput, match=message) as caught:
        opened(**options)
    assert "\n" not in str(caught.value)


ROW = r"^data.dataset: .*glue/rte: row 3 of 'train': "


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("rte", {"sentence2": None}, "sentence2 is null, not text$"),
        ("rte", {"label": 2}, r"label is 2; rte has 0 \(entailment\), 1 \(not_entailment\)$"),
        ("rte", {"label": -1}, r"label is -1: it is hidden, as in GLUE's test splits; rte has 0 \(entailment\)"),
        ("rte", {"label": None}, r"label is null; rte has 0 \(entailment\)"),
        ("rte", {"label": 0.5}, r"label is 0.5; rte has 0 \(entailment\)"),
        ("rte", {"label": float("nan")}, r"label is nan; rte has 0 \(entailment\)"),
        ("rte", {"sentence1": "a\0b"}, r"is binary \(has a byte 0\)$"),
        ("rte", {"sentence2": "\1"}, r"is binary \(has a byte 1\)$"),
        ("stsb", {"label": 5.1}, r"label is 5.1; stsb has numbers from 0 to 5$"),
        ("stsb", {"label": -0.1}, r"label is -0.1; stsb has numbers from 0 to 5$"),
        ("stsb", {"label": float("nan")}, r"label is nan; stsb has numbers from 0 to 5$"),
        ("stsb", {"label": None}, r"label is null; stsb has numbers from 0 to 5$"),
    ],
)
def test_a_row_that_is_no_example_is_refused_by_its_number(tmp_path, opened, task, change, message):
    good = STSB if task == "stsb" else RTE
    rows = [*good[:3], {**good[3], **change}, *good[4:]]
    write(tmp_path / "glue" / task / "train.parquet", rows)
    refused(opened, ROW.replace("rte", task) + message, task=task, held_out=good)
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sentence1": 3}, "sentence1 is int, not text$"),
        ({"label": "neutral"}, r"label is 'neutral'; rte has 0 \(entailment\), 1 \(not_entailment\)$"),
        ({"label": "1"}, r"label is '1'; rte has"),
        ({"label": True}, r"label is True; rte has"),
        ({"label": [1]}, r"label is \[1\]; rte has"),
    ],
)
def test_a_column_of_another_kind_is_refused_by_its_first_row(opened, change, message):
    refused(opened, ROW.replace("row 3", "row 0") + message, train=[{**row, **change} for row in RTE], held_out=RTE)


def test_held_out_rows_are_looked_at_too(opened):
    message = "glue/rte: row 1 of 'validation': label is 7;"
    refused(opened, message, train=RTE, held_out=[RTE[0], {**RTE[1], "label": 7}])


def test_an_empty_input_is_refused_where_nothing_is_left_of_it(opened):
    rows = [{"sentence": "It is.", "label": 1}, {"sentence": "", "label": 1}]
    refused(opened, "glue/cola: row 1 of 'train': is empty: the tokenizer", task="cola", train=rows, held_out=rows)
    assert text(opened("cola", text_to_text=True).train, 1) == "cola sentence: \1"


def test_what_is_missing_is_named_with_what_is_there(tmp_path, opened):
    without = [{name: value for name, value in row.items() if name != "sentence2"} for row in RTE]
    message = r"^data.dataset: .*glue/rte: no column 'sentence2' in 'train'; there are sentence1, label, idx$"
    refused(opened, message, train=without, held_out=RTE)
    refused(opened, "glue/rte: 'validation': has no rows$", train=RTE, held_out=[])
    (tmp_path / "glue" / "rte" / "validation.jsonl").unlink()
    refused(opened, r"glue/rte: has no split 'validation'; it has train; .*validation.jsonl")
    (tmp_path / "glue" / "rte" / "train.jsonl").unlink()
    refused(opened, r"glue/rte: has no split 'train'; it has no .*train.jsonl")
    refused(opened, "nowhere: cannot be read .No such file", dataset=str(tmp_path / "nowhere"))
    write(tmp_path / "train.jsonl", RTE)
    refused(opened, "train.jsonl: is a file; give the folder", dataset=str(tmp_path / "train.jsonl"))


def test_the_folder_of_another_task_is_not_read(tmp_path, opened):
    """RTE and MRPC have the same columns."""
    for split in ("train", "validation"):
        write(tmp_path / "glue" / "mrpc" / f"{split}.jsonl", RTE)
    refused(opened, r"glue: has no split 'train'; it has no file of any; it may be train\.jsonl")


def test_a_split_of_two_kinds_of_files_is_refused(tmp_path, opened):
    write(tmp_path / "glue" / "rte" / "train.parquet", RTE)
    refused(opened, "glue/rte: 'train' is in files of json and of parquet", train=RTE, held_out=RTE)


def test_files_that_cannot_be_read_are_refused_by_split(tmp_path, opened):
    (tmp_path / "glue" / "rte").mkdir(parents=True)
    for content in (b'{"sentence1": "a"}\n{"sentence1": \n', b"\xff\xfe\n", b"PAR1"):
        (tmp_path / "glue" / "rte" / "train.jsonl").write_bytes(content)
        refused(opened, r"^data.dataset: .*glue/rte.* cannot be (read|loaded) \(", held_out=RTE)
