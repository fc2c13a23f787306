"""Any settings file either runs or is refused in one line that names a field; nothing else is ever raised."""

import argparse
import dataclasses
import itertools
import math
import re
import shutil
import string
import typing
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from conftest import tiny_tables
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from relora_lab import config, environment, methods, train
from relora_lab.errors import BadInput
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig, check_name
from relora_lab.sizes import SIZES

Tables = dict[str, Any]
TABLES: dict[str, list[type]] = {
    **{name: [cls] for name, cls in typing.get_type_hints(RunConfig).items() if dataclasses.is_dataclass(cls)},
    "method": [methods.options_class(name) for name in methods.available()],
}
FIELDS = {
    (table, field.name): typing.get_type_hints(cls)[field.name]
    for table, classes in TABLES.items()
    for cls in classes
    for field in dataclasses.fields(cls)
} | {("method", "name"): str}
NAMED = re.compile("|".join(r"\b" + re.escape(f"{table}.{name}") + r"\b" for table, name in FIELDS))

INTEGERS = [0, 1, -1, 2, 3, 4, 5, 6, 8, 16, 17, 255, 2**20, 2**31, 2**63 - 1, 2**63, 10**20]
NUMBERS = [math.nan, math.inf, -math.inf, -0.0, 0.0, 5e-324, 1e-46, 1e-8, 0.5, 0.99, 1.0, 1e8, 1e38, 1e308]
CHARACTERS = st.characters(exclude_categories=["Cs"])  # UTF-8 has no surrogates
TEXTS = [
    *("", "\0", "a\nb\r\x1b[31m", "../../x", "-rf", "<script>", "=cmd()", "𝕏'\"]\u2028\u202e", "x" * 5000, "1e-3"),
    *("cpu", "cuda", "cuda:99", "bytes", "bpe", "stdlib", "", argparse.__file__),
    *SIZES,
    "control:demo",
]

numbers = st.sampled_from(INTEGERS) | st.sampled_from(NUMBERS)
scalars = numbers | st.booleans() | st.sampled_from(TEXTS) | st.text(CHARACTERS, max_size=9)
anything = (
    scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(CHARACTERS, max_size=3), scalars, max_size=2)
)
names = st.sampled_from(["", "a.b", "é\0\n]", "restart_evrey", "x" * 5000]) | st.text(CHARACTERS, max_size=9)


def right(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's declared type, in and out of its range."""
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from(typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return st.lists(right(float), min_size=2, max_size=2)
    plain = {
        bool: st.booleans(),
        int: st.integers(0, 8) | st.sampled_from(INTEGERS),
        float: st.sampled_from(NUMBERS) | st.floats() | st.sampled_from(INTEGERS),
        str: st.sampled_from(TEXTS),
    }
    if kind in plain:
        return plain[kind]
    return st.one_of(right(part) for part in typing.get_args(kind) if part is not type(None))


def small() -> Tables:
    """The tables of tiny_tables() as a run of six updates: warm start to 2, restarts at 4."""
    tables = tiny_tables()
    tables["model"]["layers"] = 1
    tables["data"] |= {"sequence_length": 8, "batch_size": 2}
    tables["method"] |= {"restart_every": 2, "restart_warmup": 1}
    tables["training"] |= {"steps": 6, "warm_start": 2, "norms_every": 2}
    tables["training"] |= {"eval_every": 3, "eval_tokens": 64, "checkpoint_every": 4}
    tables["optimizer"] |= {"warmup_steps": 1}
    return tables


@st.composite
def changed_tables(draw: st.DrawFn, *, wild: bool = True) -> Tables:
    """The small run with another method and any fields replaced; `wild`: of any type, unknown, or deleted."""
    tables = small()
    if draw(st.booleans()):
        cls = draw(st.sampled_from(TABLES["method"]))
        known = {field.name for field in dataclasses.fields(cls)}
        fit = {name: value for name, value in tables["method"].items() if name in known}
        tables["method"] = {**fit, "name": methods.name_of(cls)}
        if not issubclass(cls, methods.LowRankOptions) and methods.name_of(cls) != "full":
            tables["training"]["warm_start"] = 0  # it trains at full rank from the start
    here = methods.options_class(tables["method"]["name"])
    fields = [
        key for key in FIELDS if key[0] != "method" or key[1] in {field.name for field in dataclasses.fields(here)}
    ]
    for table, name in draw(st.lists(st.sampled_from(fields), max_size=4 if wild else 2, unique=True)):
        tables[table] = {**tables.get(table, {}), name: draw(right(FIELDS[table, name]))}
    if wild:
        for _ in range(draw(st.integers(0, 2))):
            _spoil(draw, tables)
    return tables


def _spoil(draw: st.DrawFn, tables: Tables) -> None:
    """Change something to what may be of the wrong type, in the wrong place, or not there."""
    table = draw(st.sampled_from(list(TABLES)))
    where = tables if draw(st.integers(0, 4)) == 0 else tables.setdefault(table, {})
    if not isinstance(where, dict):
        return
    known = [name for home, name in FIELDS if home == table] + list(tables)
    what = draw(st.sampled_from(["wrong", "unknown", "elsewhere", "deleted"]))
    if what == "deleted" and where:
        del where[draw(st.sampled_from(sorted(where)))]
    elif what == "unknown":
        where[draw(names)] = draw(anything)
    elif what == "elsewhere":
        where[draw(st.sampled_from(sorted({name for _, name in FIELDS})))] = draw(scalars)
    else:
        where[draw(st.sampled_from(known))] = draw(anything)


def read(path: Path) -> RunConfig | None:
    """The settings of a file; None if they are refused, in one line that names the file."""
    try:
        return config.load(path)
    except BadInput as refused:
        message = str(refused)
        assert message.startswith(f"{path}: ")
        assert message.isprintable()
        assert len(message) < 700
        return None


def why_refused(path: Path) -> str:
    """The message without the file's name."""
    with pytest.raises(BadInput) as refused:
        config.load(path)
    return str(refused.value).removeprefix(f"{path}: ")


def assert_names_a_field(message: str, tables: Tables) -> None:
    """A field as table.field, or what is unknown or in the wrong place, quoted."""
    tops = [name for name in tables if message.startswith(f"{name}: ")]  # a run name, or a table that is none
    quoted = re.match(r"unknown field '|'\w+' belongs under '", message)
    assert NAMED.search(message) or tops or quoted or message.startswith("written by a newer version"), message


def assert_reads_back(made: RunConfig, path: Path) -> None:
    """What is written of the settings is the same run."""
    path.write_text(config.dumps(made), encoding="utf-8")
    again = config.load(path)
    assert config.as_table(again) == config.as_table(made)
    assert config.digest(again) == config.digest(made)
    check_name("name", config.run_name(made))
    assert all(warning.isprintable() for warning in made.warnings())


def written(tables: Tables, folder: Path) -> Path:
    path = folder / "run.toml"
    path.write_bytes(tomli_w.dumps(tables).encode())
    return path


def refused_or_read_back(tables: Tables, folder: Path) -> None:
    path = written(tables, folder)
    made = read(path)
    if made is None:
        assert_names_a_field(why_refused(path), tables)
    else:
        assert_reads_back(made, folder / "again.toml")


def trains_here(made: RunConfig) -> bool:
    """Is it a run of a fraction of a second, with nothing from the network?"""
    shape, training, data = made.model.shape, made.training, made.data
    size = max(shape.hidden, shape.intermediate, shape.heads) * shape.layers
    return (
        (training.steps <= 6 and size <= 128 and training.threads <= 2)
        and (data.batch_size <= 8 and data.sequence_length <= 64)
        and (training.device == "cpu" and not training.compile)
        and (data.dataset is None and data.corpus == argparse.__file__ and data.tokenizer == "bytes")
    )


RUNS = itertools.count(1)


def runs_or_is_refused(tables: Tables, folder: Path) -> None:
    """What is accepted, and small, ends as a result: finished or diverged, with finite weights."""
    path = written(tables, folder)
    made = read(path)
    if made is None or not trains_here(made):
        return
    out = folder / f"run{next(RUNS)}"
    try:
        train.run(made, out, cuts=())
    except BadInput as refused:
        assert_names_a_field(str(refused), tables)
        assert not out.exists() or RunFolder(out).state == "failed"
        return
    run = RunFolder(out)
    assert run.state in ("finished", "diverged")
    assert (run.state == "diverged") == ("reason" in run.status)
    assert config.digest(run.config) == config.digest(made)
    for name, tensor in load_file(out / "final" / "model.safetensors").items():
        assert torch.isfinite(tensor).all(), f"{name} of final/ is not finite"
    shutil.rmtree(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples, so that the tokens are made once."""
    return tmp_path_factory.mktemp("settings")


@settings(max_examples=400)
@given(tables=changed_tables())
def test_settings_are_refused_by_field_or_read_back(folder, tables):
    refused_or_read_back(tables, folder)


@pytest.mark.faults
@settings(max_examples=4000)
@given(tables=changed_tables())
def test_many_settings_are_refused_by_field_or_read_back(folder, tables):
    refused_or_read_back(tables, folder)


@settings(max_examples=120)
@given(tables=changed_tables(wild=False))
def test_what_is_accepted_trains(folder, tables):
    runs_or_is_refused(tables, folder)


@pytest.mark.faults
@settings(max_examples=1200)
@given(tables=changed_tables(wild=False))
def test_much_of_what_is_accepted_trains(folder, tables):
    runs_or_is_refused(tables, folder)


FRAGMENTS = ["[", "]", "[[", "=", "'", '"', "'''", "#", "\\u", "\n", ".", ",", "{", "}", "0x", "nan", "-", *TABLES]
fragments = st.lists(st.sampled_from(FRAGMENTS) | st.text(string.printable, max_size=5), max_size=12).map("".join)
raw = st.binary(max_size=40) | st.text(CHARACTERS, max_size=40).map(str.encode) | fragments.map(str.encode)


@settings(max_examples=400)
@given(content=raw)
@example(b"")
@example(b"\xef\xbb\xbf[model]\n")
@example(b"\xff\xfe[\0m\0")
@example(b"[a" * 3000)
def test_bytes_that_are_no_settings_are_refused_in_a_line(folder, content):
    path = folder / "raw.toml"
    path.write_bytes(content)
    assert read(path) is None  # size, method, steps and lr have no defaults


HARD = {
    "a list 20,000 deep": " = " + "[" * 20_000,
    "a table 1,500 deep": ".a" * 1500 + " = 1",
    "inline tables 20,000 deep": " = " + "{a=" * 20_000,
    "9,999 digits": " = " + "9" * 9999,
    "9,999 hexadecimal digits": " = 0x" + "f" * 9999,
    "20 digits": " = " + "9" * 20,
    "a date": " = 1979-05-27T07:32:00Z",
    "a long list": " = [" + "1, " * 10_000 + "]",
}


@pytest.mark.parametrize("field", ["training.seed", "optimizer.lr", "model.size"])
@pytest.mark.parametrize("value", HARD.values(), ids=HARD)
@pytest.mark.parametrize("overrides", [[], ["training.threads=1"]], ids=["", "set"])
def test_a_value_that_is_hard_to_read_is_refused_in_a_line(tmp_path, field, value, overrides):
    table, name = field.split(".")
    tables = small()
    tables[table].pop(name, None)
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(tables).replace(f"[{table}]\n", f"[{table}]\n{name}{value}\n"))
    with pytest.raises(BadInput) as refused:
        config.load(path, overrides)
    message = str(refused.value).removeprefix(f"{path}: ")
    assert message.isprintable()
    assert re.match(f"{table}.{name}: |not valid TOML: ", message)


@pytest.mark.parametrize(
    "part",
    [
        {"model": {"hidden": 2**20}},
        {"model": {"intermediate": 2**20, "layers": 2**10}},
        {"data": {"batch_size": 10**12}},
        {"data": {"batch_size": 2**26}},
    ],
    ids=str,
)
def test_what_no_memory_here_holds_is_refused_first(part):
    tables = small()
    for table, fields in part.items():
        tables[table] |= fields
    with pytest.raises(BadInput, match=r"model\.size, data\.batch_size: .* GiB of memory, and this machine has"):
        environment.check(config.parse(tables))  # what a run does first
