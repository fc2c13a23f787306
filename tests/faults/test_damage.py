"""What is cut, flipped or forged is named, quickly and in little memory, before a number is made of it."""

import json
import random
import shutil
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from conftest import run
from fault_runs import Command, faults_below, tiny_run
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from analysis import load_runs
from analysis.checkpoints import open_checkpoint
from relora_lab import checkpoints, config, tensor_files, train
from relora_lab.errors import BadInput

SECONDS, MEMORY = 1.0, 64 * 2**20
BITS = 200


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of one run, with what is beside it; checkpoints stay."""
    folder = tmp_path_factory.mktemp("trained")
    train.run(tiny_run(), folder / "run")
    return folder


@pytest.fixture
def runs(trained, tmp_path):
    """A copy of it that a test may damage."""
    copy = shutil.copytree(trained, tmp_path / "runs")
    assert faults_below(copy) == []
    return copy


def artifacts(runs):
    """Every file that is not empty and no lock."""
    return sorted(path for path in runs.rglob("*") if path.is_file() and path.stat().st_size and path.name != ".lock")


def offsets(size):
    """Nine places to cut a file at: in its first bytes, its middle, its last."""
    return sorted({0, 1, 7, 8, 9, size // 4, size // 2, 3 * size // 4, size - 1})


def test_every_cut_of_every_artifact_is_found(runs, record_property):
    """By `relora-lab runs check`. A last newline that a JSON file lost is no loss."""
    record_property("experiment", "a file is cut")
    tries, missed = 0, []
    for path in artifacts(runs):
        written = path.read_bytes()
        for size in offsets(len(written)):
            path.write_bytes(written[:size])
            began = time.perf_counter()
            faults = faults_below(runs)
            assert time.perf_counter() - began < SECONDS
            same = written[size:] == b"\n" and path.suffix == ".json"
            tries += 1
            if not same and not any(str(path) in fault or path.name == "manifest.json" for fault in faults):
                missed.append((path.relative_to(runs), size))
        path.write_bytes(written)
    record_property("tries", tries)
    record_property("survived", tries - len(missed))
    assert missed == []
    assert tries > 300


def test_every_bit_that_flips_in_weights_is_found(runs, record_property):
    """In weights, cycles and states; by the check of all, and by what would read them."""
    record_property("experiment", "a bit of the weights is flipped")
    draw, found = random.Random(0), 0  # noqa: S311 (no secret)
    weights = [path for path in artifacts(runs / "run") if path.suffix == ".safetensors"]
    for _ in range(BITS):
        path = draw.choices(weights, [path.stat().st_size for path in weights])[0]
        written = path.read_bytes()
        flipped = bytearray(written)
        flipped[draw.randrange(len(written))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        (fault,) = faults_below(runs / "run")
        with pytest.raises(BadInput, match=f"{path}: is damaged or was changed"):
            if "checkpoints" in path.parts:
                checkpoints.load(path.parent)
            else:
                open_checkpoint(runs / "run", "warm_start" if "warm_start" in path.parts else "final")
        found += fault.startswith(f"{path}: is damaged")
        path.write_bytes(written)
    record_property("tries", BITS)
    record_property("survived", found)
    assert found == BITS


@pytest.mark.parametrize("log", ["metrics", "eval", "norms"])
def test_a_log_that_lost_its_end_makes_no_report(runs, log):
    path = runs / "run" / f"{log}.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(BadInput, match=rf"{log}\.jsonl: is damaged"):
        load_runs(runs)


@pytest.mark.parametrize(
    "name",
    [
        *("warm_start/model.safetensors", "cycles/0001.json", "checkpoints/*/optimizer.safetensors"),
        *("checkpoints/*/state.json", "metrics.jsonl"),
    ],
)
def test_a_damaged_run_is_not_continued(tmp_path, name, capsys):
    """It says which file is damaged, exits 2 and leaves all as it is."""
    declared = tmp_path / "run.toml"
    declared.write_text(config.dumps(tiny_run()))
    out = tmp_path / "run"
    Command("train", declared, "--out", out, fault="kill@update 45").ended()
    (path,) = out.glob(name)
    path.write_bytes(path.read_bytes()[:-3])
    kept = [file for file in out.rglob("*") if file.suffix in (".safetensors", ".jsonl", ".json", ".toml")]
    before = {file: file.read_bytes() for file in kept if file.name not in ("status.json", "environment.json")}
    code, _, err = run(capsys, "train", declared, "--out", out, "--resume")
    assert (code, len(err.splitlines())) == (2, 1)
    assert str(path) in err
    assert {file: file.read_bytes() for file in before} == before


def test_damaged_tokens_are_not_trained_on(runs, capsys, tmp_path):
    declared = tmp_path / "run.toml"
    declared.write_text(config.dumps(tiny_run(training={"seed": 1})))
    (path,) = runs.glob(".tokens/*/train.bin")
    flipped = bytearray(path.read_bytes())
    flipped[1000] ^= 1
    path.write_bytes(flipped)
    code, _, err = run(capsys, "train", declared, "--out", runs / "other")
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"{path}: is damaged or was changed" in err
    assert f"remove {path.parent}, which is made again" in err
    assert not (runs / "other").exists()


# ---- headers that somebody made up


def forged(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def refused(path: Path) -> str:
    """Why a file is refused, in little time and memory."""
    began = time.process_time()
    with pytest.raises(BadInput) as error:
        tensor_files.read(path)
    assert time.process_time() - began < SECONDS
    tracemalloc.start()
    with pytest.raises(BadInput):
        tensor_files.read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MEMORY
    return str(error.value)


def test_a_header_of_100_mb_is_not_read(tmp_path, record_property):
    record_property("experiment", "a header of 100 MB, of lists in lists, of thousands of digits")
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(forged(b"{", length=100_000_000))
        file.truncate(8 + 100_000_000)
    assert "header has 100000000 bytes; no more than 8388608 are read" in refused(path)
    for text in (b"[" * 2**20, b'{"a":' * 2**20, b'{"a":{"shape":[' + b"9" * 2**20, b'{"a":' + b"9" * 5000 + b"}"):
        path.write_bytes(forged(text))
        assert "header is not valid JSON" in refused(path)
    text = json.dumps({f"t{n}": {"dtype": "U8", "shape": [1], "data_offsets": [n, n + 1]} for n in range(30_000)})
    path.write_bytes(forged(text.encode(), bytes(30_000 - 1)))
    assert "header promises 30000 data bytes, found 29999" in refused(path)


ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([*tensor_files.BITS, "F99", "", None, 4]),
        "shape": st.one_of(
            st.lists(st.integers(-1, 3), max_size=3), st.sampled_from([None, 3, [2**40, 2**40], [1.0], [True]])
        ),
        "data_offsets": st.one_of(
            st.lists(st.integers(0, 16), max_size=3), st.sampled_from([None, [0, 2**70], [0, "4"]])
        ),
        "more": st.none(),
    },
)
VALUES = st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=2))
HEADERS = st.dictionaries(st.sampled_from(["a", "b.c", "../x", "__metadata__", ""]), ENTRIES | VALUES, max_size=3)


@given(HEADERS, st.binary(max_size=24))
@settings(max_examples=300)
def test_any_header_is_read_by_the_library_or_refused_by_name(tmp_path_factory, header, data):
    path = tmp_path_factory.mktemp("forged") / "x.safetensors"
    path.write_bytes(forged(json.dumps(header).encode(), data))
    try:
        found = tensor_files.header(path)
    except BadInput as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017
        return
    with safe_open(path, "np") as file:
        assert set(file.keys()) == set(found.tensors)


@given(st.data())
@settings(max_examples=300)
def test_any_file_with_changed_bytes_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("changed") / "x.safetensors"
    content = bytearray(save({"a.b": torch.ones(2, 2), "c": torch.zeros(3, dtype=torch.int8)}, {"format": "pt"}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        tensor_files.read(path)
    except BadInput as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017
