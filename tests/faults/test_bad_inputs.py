"""Bad input, kind by kind: one line that has the facts, the right exit code, nothing written, nothing lost."""

import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tomli_w
import torch
from checkpoint_files import model
from conftest import changed, run, tiny_tables

from analysis.load import require_comparable
from analysis.statistics import paired_difference
from relora_lab import config
from relora_lab.lowrank import wrap
from relora_lab.runs import RunFolder

Prepare = Callable[[Path], list[str]]


@dataclass(frozen=True)
class Case:
    """A bad input: `prepare` makes it in an empty folder, the current one, and returns the command's arguments.

    `facts` are patterns of the one line on stderr; without any there is no such line. `shown` are patterns of stdout.
    """

    id: str
    prepare: Prepare
    facts: tuple[str, ...]
    code: int = 2
    shown: tuple[str, ...] = ()


def case(name: str, prepare: Prepare, *facts: str, code: int = 2, shown: tuple[str, ...] = ()) -> Case:
    """A Case, its facts one by one."""
    return Case(name, prepare, facts, code, shown)


# ---- how bad inputs are made

TRAIN = ["train", "run.toml", "--out", "runs/a"]
NAME = r"letters, digits, \. _ - \(1 to 80\), not starting with \. or -"


def setting(at: str, value: Any, **others: Any) -> Prepare:
    """The settings of a tiny run with one of them replaced: "lr" at the top, "optimizer.lr" in its table."""
    tables: dict[str, Any] = tiny_tables()
    for place, new in {at: value, **{name.replace("__", "."): other for name, other in others.items()}}.items():
        table, _, field = place.rpartition(".")
        (tables.setdefault(table, {}) if table else tables)[field] = new
    return text(tomli_w.dumps(tables))


def replaced(old: str, new: str) -> Prepare:
    """The tiny run's TOML with a piece of text replaced."""
    whole = tomli_w.dumps(tiny_tables())
    assert old in whole
    return text(whole.replace(old, new, 1))


def text(content: str | bytes) -> Prepare:
    """Settings with this content."""

    def prepare(folder: Path) -> list[str]:
        (folder / "run.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
        return TRAIN

    return prepare


def arguments(*given: str) -> Prepare:
    """Sound settings, and these arguments in place of the usual ones."""

    def prepare(folder: Path) -> list[str]:
        text(config.dumps(changed(tiny_tables())))(folder)
        return list(given)

    return prepare


def corpus(make: Callable[[Path], object], **data: Any) -> Prepare:
    """A run on the corpus that `make` leaves at the path it is given."""

    def prepare(folder: Path) -> list[str]:
        make(folder / "corpus")
        return setting("data.corpus", "corpus", **{f"data__{name}": value for name, value in data.items()})(folder)

    return prepare


def holding(content: bytes) -> Callable[[Path], object]:
    """Makes a file with this content."""
    return lambda path: path.write_bytes(content)


def folder_of(**files: bytes) -> Callable[[Path], object]:
    """Makes a folder of text files."""

    def make(path: Path) -> None:
        path.mkdir()
        for name, content in files.items():
            (path / f"{name}.txt").write_bytes(content)

    return make


GRID = """
[base.model]
size = "demo"
[base.training]
steps = 60
[base.optimizer]
lr = 3e-3
[base.method]
name = "lora"
rank = 2
"""


def grid(rows: str, *more: str, seeds: str = "[0, 1]", base: str = GRID) -> Prepare:
    """A grid of these rows."""

    def prepare(folder: Path) -> list[str]:
        (folder / "grid.toml").write_text(f"seeds = {seeds}\n{base}\n{rows}")
        return ["grid", "grid.toml", "--out", "runs", *more]

    return prepare


def shapes(width: int = 8, layers: int = 4, without: str = "", extra: str = "") -> dict[str, tuple[int, int]]:
    """Names and shapes of a model's matrices."""
    parts = {f"self_attn.{role}_proj": (width, width) for role in "qkvo"}
    parts |= {"mlp.gate_proj": (2 * width, width), "mlp.up_proj": (2 * width, width)}
    parts |= {"mlp.down_proj": (width, 2 * width)}
    found = {f"layers.{n}.{part}.weight": shape for n in range(layers) for part, shape in parts.items()}
    found |= {extra: (width, width)} if extra else {}
    return {name: shape for name, shape in found.items() if name != without}


def compared(start: dict[str, Any], final: dict[str, Any], *more: str) -> Prepare:
    """`spectrum` of two models; arguments as `shapes` has, and `seed` and `tensors` of checkpoint_files.model."""

    def prepare(folder: Path) -> list[str]:
        for seed, (name, about) in enumerate({"start": start, "final": final}.items()):
            options = {"seed": about.pop("seed", seed), "tensors": about.pop("tensors", {})}
            model(folder / name, shapes(**about), **options)
        return ["spectrum", "start", "final", *more]

    start, final = dict(start), dict(final)
    return prepare


def broken(*values: float) -> dict[str, Any]:
    """A model with these values in one matrix, for `compared`."""
    W = torch.randn(8, 8, generator=torch.Generator().manual_seed(5))
    W.view(-1)[: len(values)] = torch.tensor(values)
    return {"tensors": {"layers.1.self_attn.q_proj.weight": W}}


def same(name: str) -> Prepare:
    """A model compared with itself by this name; "link" leads to it."""

    def prepare(folder: Path) -> list[str]:
        model(folder / "start", shapes())
        (folder / "link").symlink_to("start")
        return ["spectrum", "start", name]

    return prepare


def a_run(
    path: Path, *, state: str = "finished", sha256: str = "a1b2c3d4", weights: bool = False, **parts: Any
) -> Path:
    """A run folder as the trainer leaves it, but for what it logged."""
    run = RunFolder(path)
    run.path.mkdir(parents=True)
    run.write_config(changed(tiny_tables(), **parts))
    run.write_environment({"corpus": {"text_sha256": sha256.ljust(64, "0")}})
    run.write_status(state, step=60 if state == "finished" else 20, steps=60)
    for seed, end in enumerate(("warm_start", "final") if weights else ()):
        model(path / end, shapes(), seed=seed)
    return path


def runs(*given: str, **of_the_second: Any) -> Prepare:
    """Two run folders, runs/a and runs/b; the arguments name them."""

    def prepare(folder: Path) -> list[str]:
        a_run(folder / "runs" / "a")
        a_run(folder / "runs" / "b", **of_the_second)
        text(config.dumps(changed(tiny_tables())))(folder)
        return list(given)

    return prepare


def damaged(file: str, content: str, *given: str) -> Prepare:
    """A run folder, runs/a, with this in one of its files."""

    def prepare(folder: Path) -> list[str]:
        arguments()(folder)
        (a_run(folder / "runs" / "a", weights=True) / file).write_text(content)
        return list(given)

    return prepare


def newer(*given: str) -> Prepare:
    """A run folder that a newer version wrote."""
    return damaged(
        "config.toml", config.dumps(changed(tiny_tables())).replace("_version = 1", "_version = 3"), *given
    )


def half(*given: str, without: tuple[str, ...] = (), state: str = "stopped") -> Prepare:
    """A run folder, runs/a, that has only begun, and lacks these of its files."""

    def prepare(folder: Path) -> list[str]:
        arguments()(folder)
        path = a_run(folder / "runs" / "a", state=state)
        for name in without:
            (path / name).unlink()
        return list(given)

    return prepare


def stored(content: bytes, name: str = "x.safetensors") -> Prepare:
    """`spectrum` of a file with this content and a sound one."""

    def prepare(folder: Path) -> list[str]:
        (folder / "sound.safetensors").write_bytes(SOUND)
        (folder / name).write_bytes(content)
        return ["spectrum", "sound.safetensors", name]

    return prepare


def forged(header: str | bytes | None = None, length: int | None = None, **entries: Any) -> bytes:
    """A safetensors file with this header, or of these entries, and 16 bytes of data if it has any."""
    text = json.dumps(entries) if header is None else header
    head = text if isinstance(text, bytes) else text.encode()
    return (len(head) if length is None else length).to_bytes(8, "little") + head + bytes(16 if entries else 0)


def entry(dtype: str = "F32", shape: Any = (2, 2), data_offsets: Any = (0, 16)) -> dict[str, Any]:
    """A tensor of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets}


SOUND = forged(**{"layers.0.w.weight": entry()})

# ---- the rows

LONG = "x" * 10_000
NAN, INF = float("nan"), float("inf")
UP, MORE = "layers.3.mlp.up_proj.weight", "layers.3.mlp.w1.weight"
NAMES = ["../x", "a/b", "..", ".", "-rf", "", LONG, ".hidden", "a\nb", "a b", "ünï", "<script>", "=cmd()"]
OUTS = ["..", "runs/-rf", "", LONG, "runs/.hidden", "a\nb", "runs/a b"]
RATE = "optimizer.lr"
EVERY = "method.restart_every"
RESUME = ["train", "run.toml", "--out", "runs/a", "--resume"]
COMPARE = ["report", "runs", "--out", "report"]

CASES = [
    # 1 to 12: what is no safetensors file, or says something of its tensors that cannot be
    case("1 empty", stored(b""), r"x\.safetensors: empty or cut \(0 bytes\)"),
    case("2 three bytes", stored(b"abc"), r"x\.safetensors: not a safetensors file \(3 bytes\)"),
    case("3 cut", stored(SOUND[:-1]), "header promises 16 data bytes, found 15"),
    case("3 cut to the header", stored(SOUND[:-16]), "header promises 16 data bytes, found 0"),
    case("4 longer", stored(SOUND + b"x"), "1 unexpected byte after the last tensor"),
    case("4 much longer", stored(SOUND * 2), r"\d+ unexpected bytes after the last tensor"),
    case(
        "5 length",
        stored(forged("{}", length=2**40)),
        rf"header length is larger than the file \({2**40} of 10 bytes",
    ),
    case("5 cut in it", stored(SOUND[:20]), "header length is larger than the file"),
    case("6 not UTF-8", stored(forged(b'{"a\xff": 1}')), r"header is not valid JSON \(byte 3 is not UTF-8\)"),
    case("6 not JSON", stored(forged('{"a": }')), r"header is not valid JSON \(byte 6: "),
    case("6 no object", stored(forged("[]")), "header is not valid JSON of a safetensors file"),
    case("6 nothing", stored(forged("")), r"header is not valid JSON \(byte 0"),
    case("7 offsets", stored(forged(w=entry(data_offsets=[0, 8]))), "tensor 'w' needs 16 bytes, offsets give 8"),
    case("8 overlap", stored(forged(a=entry(), b=entry(data_offsets=[8, 24]))), "tensors 'a' and 'b' overlap"),
    case("8 gap", stored(forged(a=entry(), b=entry(data_offsets=[17, 33]))), "1 bytes before tensor 'b'"),
    case("9 shape", stored(forged(a=entry(shape=[2**40, 2**40]))), r"tensor 'a': impossible shape \[1099511627776, "),
    case("10 dtype", stored(forged(a=entry(dtype="F99"))), "tensor 'a': unknown dtype F99"),
    case("10 negative", stored(forged(a=entry(shape=[-2, 2]))), r"tensor 'a': impossible shape \[-2, 2\]"),
    case("10 no dtype", stored(forged(a={"shape": [4]})), "tensor 'a': must have dtype, shape and data_offsets"),
    case("11 twice", stored(forged('{"w": {}, "w": {}}')), "tensor 'w' appears twice"),
    case("11 metadata", stored(forged('{"__metadata__": {"a": "", "a": ""}}')), "metadata 'a' appears twice"),
    case("12 number", stored(forged(__metadata__={"step": 3}, w=entry())), "metadata 'step' must be text"),
    case("12 list", stored(forged(__metadata__=["step"], w=entry())), "metadata must be texts by name"),
    # 13, 14: pickles, of which test_pickles.py has more
    case(
        "13 pickle", stored(pickle.dumps({"w": 1})), "this is a pickle, which can run code; only safetensors are read"
    ),
    case("13 zip", stored(b"PK\3\4" + b"x" * 99), "this is a pickle, which can run code; only safetensors are read"),
    *(
        case(f"14 {suffix}", stored(SOUND, f"x{suffix}"), rf"x\{suffix}: pickle files are never loaded")
        for suffix in (".pt", ".bin", ".ckpt", ".pkl", ".npy")
    ),
    # 15: names of tensors
    *(
        case(f"15 {name[:9]!r}", stored(forged(**{name: entry()})), "tensor '.*: not a module path")
        for name in ("../../etc/x", "/etc/passwd", "a\0b", "a\nb", LONG, "", "a..b", "a b", "\x1b[31mw")
    ),
    # 16: names
    *(case(f"16 name {name[:9]!r}", setting("name", name), "run.toml: name: ", NAME) for name in NAMES),
    *(case(f"16 out {out[:12]!r}", arguments("train", "run.toml", "--out", out), "--out: ", NAME) for out in OUTS),
    case("16 out -rf", arguments("train", "run.toml", "--out=-rf"), "--out: '-rf'", NAME),
    case("16 out -rf apart", arguments("train", "run.toml", "--out", "-rf"), "Missing value for argument '--out'"),
    case("16 grid row", grid('[rows."../x"]'), r"rows\.\.\./x: name: ", NAME),
    case("16 grid row long", grid(f"[rows.{LONG}]"), r"rows\.xxx", NAME),
    case("16 name number", setting("name", 3), "name: expected text, got 3"),
    # 18: unknown fields, and settings that are none at all
    case(
        "18 evrey",
        setting("method.restart_evrey", 200),
        r"run\.toml: unknown field 'restart_evrey' in \[method\]; did you mean 'restart_every'\?",
    ),
    case("18 set", arguments(*TRAIN, "--set", "method.restart_evrey=200"), "did you mean 'restart_every'"),
    case("18 two", setting("method.restart_evrey", 2, method__rnak=3), "'restart_evrey'.*'restart_every'"),
    case("18 upper case", setting("method.Restart_Every", 2), "'Restart_Every'.*'restart_every'"),
    case("18 table", setting("trainig.steps", 2), r"unknown field 'trainig' at the top; did you mean 'training'\?"),
    case("18 nothing near", setting("data.qwxyz", 2), r"unknown field 'qwxyz' in \[data\]; there are corpus, "),
    case("18 empty", setting("data.", 2), r"unknown field '' in \[data\]"),
    case("18 newline", setting("data.a\nb", 2), r"unknown field 'a\\nb' in \[data\]"),
    case("18 long", setting(f"data.{LONG}", 2), "unknown field 'xxx"),
    case("18 grid row", grid("[rows.a]\nmethod.restart_evrey = 2"), r"rows\.a: .*did you mean 'restart_every'\?"),
    case("18 grid part", grid("[row.a]"), r"unknown field 'row'; did you mean 'rows'\?"),
    case("18 syntax", replaced("steps = 60", "steps = = 60"), r"run\.toml: not valid TOML: .*line 20"),
    case("18 key twice", replaced("steps = 60", "steps = 60\nsteps = 61"), "not valid TOML: .*line 21"),
    case("18 open table", text("[model\n"), "not valid TOML: .*line 1"),
    case("18 json", text(json.dumps(tiny_tables())), r"run\.toml: not valid TOML: .*line 1"),
    case("18 yaml", text("model:\n  size: demo\n"), r"run\.toml: not valid TOML: .*line 1"),
    case("18 not UTF-8", text(b"[model] # \xff\n"), r"run\.toml: is not UTF-8 text \(byte 10\)"),
    case("18 UTF-16", text("[model]".encode("utf-16")), r"run\.toml: is not UTF-8 text \(byte 0\)"),
    case("18 deep", text("a = " + "[" * 20_000), r"run\.toml: not valid TOML"),
    case("18 nothing", text(""), r"run\.toml: model\.size: is missing"),
    case(
        "18 no file", arguments("train", "none.toml", "--out", "runs/a"), r"none\.toml: cannot be read \(No such file"
    ),
    case("18 folder", arguments("train", ".", "--out", "runs/a"), r"\.: cannot be read \(Is a directory"),
    case("18 NUL", arguments("train", "a\0b", "--out", "runs/a"), r"a\\x00b: .*null byte"),
    case("18 no grid", arguments("grid", "demmo", "--out", "runs"), "demmo: cannot be read .*did you mean 'demo'"),
    case("18 plan", arguments("plan", "none.toml"), r"none\.toml: cannot be read"),
    # 19: fields in the wrong table
    case("19 training", setting("training.lr", 0.1), r"'lr' belongs under 'optimizer', not in \[training\]"),
    case("19 method", setting("method.lr", 0.1), r"'lr' belongs under 'optimizer', not in \[method\]"),
    case("19 top", setting("lr", 0.1), "'lr' belongs under 'optimizer', not at the top"),
    case("19 rank", setting("training.rank", 2), r"'rank' belongs under 'method', not in \[training\]"),
    case("19 eps", setting("training.eps", 1e-3), r"'eps' belongs under 'optimizer', not in \[training\]"),
    case("19 gap", setting("data.gap", 3), r"'gap' belongs under 'method' \(of galore\), not in \[data\]"),
    case(
        "19 other method",
        setting("method.gap", 3),
        r"method\.gap: is no setting of relora but of galore; it has rank",
    ),
    case(
        "19 table in table",
        setting("model.training", {}),
        r"unknown field 'training' in \[model\]; it belongs at the top",
    ),
    case("19 name", setting("training.name", "a"), r"unknown field 'name' in \[training\]; it belongs at the top"),
    case("19 no table", setting("method", "relora"), r"method: is a table; write \[method\]"),
    case("19 grid row", grid("[rows.a]\ntraining.lr = 1"), r"rows\.a: 'lr' belongs under 'optimizer'"),
    # 20: restarts
    *(
        case(f"20 {every}", setting(EVERY, every), EVERY, rf"≥ 1 \(got {every}\)", "without restarts use.*'lora'")
        for every in (0, -5)
    ),
    case("20 none", setting(EVERY, "none"), EVERY, 'got text "none"; for none leave the field out'),
    case("20 false", setting(EVERY, value=False), EVERY, "got false; for none leave the field out"),
    case("20 merges", setting("method.merge_every", 0, method__name="online_relora"), r"merge_every: must be ≥ 1"),
    case("20 missing", setting("method", {"name": "relora", "rank": 2}), "restart_every: relora needs it", "'lora'"),
    # 21: ranks
    case("21 zero", setting("method.rank", 0), r"method\.rank: must be ≥ 1 \(got 0\)"),
    case("21 negative", setting("method.rank", -1), r"method\.rank: must be ≥ 1 \(got -1\)"),
    case(
        "21 of a square",
        setting("method.rank", 300, model__hidden=128, model__intermediate=344),
        r"method\.rank: rank 300 > min\(128, 128\) = 128 for model\.layers\.0\.self_attn\.q_proj",
    ),
    case(
        "21 of an MLP",
        setting("method.rank", 300, model__hidden=344, model__intermediate=128),
        r"method\.rank: rank 300 > min\(128, 344\) = 128 for model\.layers\.0\.mlp\.gate_proj",
    ),
    case("21 galore", setting("method", {"name": "galore", "rank": 17}), r"rank 17 > min\(16, 16\) = 16 for model\."),
    # 22: warm starts
    *(
        case(
            f"22 {warm} of {steps}",
            setting("training.warm_start", warm, training__steps=steps),
            rf"training\.warm_start: the warm start \({warm}\) must be shorter than training \({steps}\)",
        )
        for warm, steps in ((2000, 1500), (60, 60))
    ),
    case("22 negative", setting("training.warm_start", -1), r"training\.warm_start: must be ≥ 0 \(got -1\)"),
    case("22 no steps", setting("training.steps", 0), r"training\.steps: must be ≥ 1 \(got 0\)"),
    case(
        "22 reference", setting("training.reference_step", 61), "reference_step: 61 lies outside the run's 60 steps"
    ),
    # 23: restart warm-ups
    *(
        case(
            f"23 {warmup}",
            setting("method.restart_warmup", warmup, method__restart_every=200),
            rf"method\.restart_warmup: {warmup} leaves no step at full rate in a cycle of 200",
        )
        for warmup in (200, 300)
    ),
    case("23 negative", setting("method.restart_warmup", -1), r"restart_warmup: must be ≥ 0 \(got -1\)"),
    case("23 lora", setting("method.name", "lora", method__restart_warmup=14), "full rate in a cycle of 14"),
    case("23 first", setting("optimizer.warmup_steps", 15), r"warmup_steps \(15\) must be ≤ restart_every \(14\)"),
    # 24: ratios
    case("24 1.5", setting("method.reset_ratio", 1.5), r"reset_ratio: must be in \[0, 1\) \(got 1\.5\)"),
    case("24 99", setting("method.reset_ratio", 99), r"in \[0, 1\) \(got 99; did you mean 0\.99\?\)"),
    case("24 99.0", setting("method.reset_ratio", 99.0), r"in \[0, 1\) \(got 99; did you mean 0\.99\?\)"),
    case("24 99.9", setting("method.reset_ratio", 99.9), r"\(got 99\.9; did you mean 0\.999\?\)"),
    case(
        "24 all", setting("method.reset_ratio", 1.0), r"\(got 1; to reset all use method\.optimizer_reset = 'zero'\)"
    ),
    case("24 negative", setting("method.reset_ratio", -0.1), r"in \[0, 1\) \(got -0\.1\)"),
    case("24 nan", setting("method.reset_ratio", float("nan")), r"in \[0, 1\) \(got nan\)"),
    # 25: kinds of value
    case("25 text", setting(RATE, "1e-3"), r"optimizer\.lr: expected a number, got text \"1e-3\"; write it without"),
    *(
        case(
            f"25 {value}",
            replaced("lr = 0.003", f"lr = {value}"),
            r"\.lr: expected a positive number",
            f"got {value}",
        )
        for value in ("nan", "inf", "-inf", "-1", "-0.001", "0")
    ),
    case("25 true", setting(RATE, value=True), r"optimizer\.lr: expected a number, got true"),
    case("25 list", setting(RATE, [0.1]), r"optimizer\.lr: expected a number, got \[0\.1\]"),
    case("25 table", setting(RATE, {"peak": 1}), r"optimizer\.lr: expected a number, got \{\"peak\": 1\}"),
    *(
        case(f"25 {field}", setting(field, 1.5), rf"{field}: expected a whole number, got 1\.5")
        for field in ("training.steps", "training.seed", "data.batch_size", "method.rank")
    ),
    case("25 2.0", setting("training.steps", 2.0), r"steps: expected a whole number, got 2\.0"),
    case("25 steps true", setting("training.steps", value=True), "steps: expected a whole number, got true"),
    case("25 steps text", setting("training.steps", "60"), 'whole number, got text "60"; write it without quotes'),
    case("25 steps nan", setting("training.steps", float("nan")), "steps: expected a whole number, got nan"),
    case("25 one beta", setting("optimizer.betas", [0.9]), r"betas: expected two numbers, got \[0\.9\]"),
    case("25 betas", setting("optimizer.betas", [0.9, 1.0]), r"betas: must be in \[0, 1\) \(got 1\.0\)"),
    case("25 flag", setting("method.jagged", 1), r"method\.jagged: expected true or false, got 1"),
    case(
        "25 choice", setting("method.optimizer_reset", "half"), "expected 'none' or 'zero' or 'magnitude' or 'random'"
    ),
    # 26: models of another size
    case(
        "26 spectrum",
        compared({"width": 64}, {"width": 128}),
        r"start: layers\.0\.self_attn\.q_proj\.weight is 64×64, but 128×128 in final \(and 27 more\)",
    ),
    case("26 blocks too", compared({}, {"width": 16, "layers": 6}), "q_proj.weight is 8×8, but 16×16", "and 27 more"),
    case(
        "26 one matrix",
        compared({}, {"tensors": {UP: torch.ones(9, 8)}}),
        rf"start: {UP} is 16×8, but 9×8 in final$",
    ),
    case(
        "26 resume",
        runs(*RESUME, "--set", "model.hidden=32"),
        r"runs/a: cannot resume with model\.hidden changed from 16 to 32",
    ),
    # 27: matrices that one side lacks
    case("27 missing", compared({}, {"without": UP}), f"final: missing {UP}, which start has$"),
    case("27 missing at start", compared({"without": UP}, {}), f"start: missing {UP}, which final has$"),
    case("27 extra", compared({}, {"extra": MORE}), f"start: missing {MORE}, which final has$"),
    case("27 extra at start", compared({"extra": MORE}, {}), f"final: missing {MORE}, which start has$"),
    case("27 blocks", compared({}, {"layers": 3}), r"final: missing layers\.3\.\S+ \(and 6 more\), which start has$"),
    case(
        "27 renamed", compared({}, {"without": UP, "extra": MORE}), f"start: missing {MORE}; it has {UP}, which final"
    ),
    # 28: NaN and Inf
    *(
        case(
            f"28 {what}",
            compared(*sides),
            r": layers\.1\.self_attn\.q_proj: 3 non-finite values; marked nonfinite, the rest analysed",
            code=3,
            shown=("ΔW of 28 matrices", "1 of the matrices are marked nonfinite; the rest is analysed"),
        )
        for what, sides in {
            "nan": ({}, broken(NAN, NAN, NAN)),
            "inf": ({}, broken(INF, -INF, NAN)),
            "start": (broken(NAN, INF, NAN), {}),
            "same place": (broken(INF, INF, NAN), broken(INF, INF, 1.0)),
        }.items()
    ),
    # 29: no difference
    case("29 twice", compared({}, {"seed": 0}), "final: ΔW is exactly zero for all 28 matrices: same files?"),
    case("29 same path", same("start"), "start: ΔW is exactly zero for all 28 matrices: same files?"),
    case("29 link", same("link"), "link: ΔW is exactly zero for all 28 matrices: same files?"),
    case("29 some", compared({}, {"seed": 0}, "--role", "q"), "ΔW is exactly zero for all 4 matrices: same files?"),
    # 30: corpora
    case("30 empty", corpus(holding(b"")), r"data\.corpus: .*has 0 tokens, needs > sequence length 32"),
    case(
        "30 empty files", corpus(folder_of(a=b"", b=b"")), r"data\.corpus: .*has 0 tokens, needs > sequence length 32"
    ),
    case("30 empty folder", corpus(folder_of()), r"data\.corpus: corpus: holds no files"),
    case(
        "30 short",
        corpus(holding(b"x" * 57), sequence_length=128),
        r"data\.corpus: .*corpus has 57 tokens, needs > sequence length 128",
    ),
    case(
        "30 short held out",
        corpus(holding(b"x" * 1000), sequence_length=128),
        r"data\.corpus: .*held-out part .* has 50 tokens, needs > sequence length 128",
    ),
    case("30 binary", corpus(holding(b"abc\0" * 999)), r"data\.corpus: corpus: is binary \(byte 3 is 0\)"),
    case("30 picture", corpus(holding(b"\x89PNG" * 999)), r"data\.corpus: corpus: is not UTF-8 text \(byte 0\)"),
    case("30 one is binary", corpus(folder_of(a=b"x" * 999, b=b"\0")), r"data\.corpus: corpus/b\.txt: is binary"),
    case("30 missing", corpus(lambda path: path), r"data\.corpus: corpus: cannot be read \(No such file"),
    case("30 dangling", corpus(lambda path: path.symlink_to("none")), r"data\.corpus: corpus: cannot be read"),
    case("30 loop", corpus(lambda path: path.symlink_to(path)), r"data\.corpus: corpus: cannot be read \(Too many"),
    case("30 pipe", corpus(os.mkfifo), r"data\.corpus: corpus: is neither a file nor a folder"),
    case(
        "30 not to be read", setting("data.corpus", "/proc/self/mem"), r"data\.corpus: /proc/self/mem: cannot be read"
    ),
    case("30 no name", setting("data.corpus", ""), r"data\.corpus: is empty"),
    case("30 no names", setting("data.corpus", []), r"data\.corpus: is empty"),
    case("30 NUL", setting("data.corpus", "a\0b"), r"data\.corpus: 'a\\x00b': cannot be read"),
    # 31: grids
    case(
        "31 same row",
        grid("[rows.a]\n[rows.b]\nmethod.rank = 4\n[rows.c]\nmethod.alpha = 2.0"),
        r"rows\.a and rows\.c are the same configuration",
    ),
    case(
        "31 row and axis",
        grid("[axes]\nmethod.rank = [2, 4]\n[rows.x]\nmethod.rank = 4"),
        r"rows\.rank4 and rows\.x are the same configuration",
    ),
    case("31 dry run", grid("[rows.a]\n[rows.b]", "--dry-run"), r"rows\.a and rows\.b are the same configuration"),
    case("31 same value", grid("[axes]\nmethod.rank = [2, 4, 2]"), r"axes\.method\.rank: 2 is there twice"),
    case("31 same seed", grid("[rows.a]", seeds="[0, 1, 0]"), "seeds: 0 is there twice"),
    case("31 seeds option", grid("[rows.a]", "--seeds", "3", "3"), "seeds: 3 is there twice"),
    case("31 seed text", grid("[rows.a]", seeds='["0"]'), "seeds: must be a list of whole numbers"),
    case("31 seed negative", grid("[rows.a]", seeds="[-1]"), r"training\.seed: must be ≥ 0 \(got -1\)"),
    *(
        case(f"31 no {what}", made, r"the grid is empty: it needs \[rows\.NAME\] or \[axes\], and seeds")
        for what, made in {
            "rows": grid(""),
            "seeds": grid("[rows.a]", seeds="[]"),
            "axes": grid("[axes]"),
            "base": grid("", base=""),
        }.items()
    ),
    case("31 empty axis", grid("[axes]\nmethod.rank = []"), r"axes\.method\.rank: must be a list .*not an empty one"),
    # 32: rows of one table
    case(
        "32 corpus",
        runs(*COMPARE, sha256="c3d4e5f6"),
        r"rows are not comparable: corpus a1b2c3d4 \(a\) vs c3d4e5f6 \(b\)",
    ),
    case("32 tokens", runs(*COMPARE, data={"batch_size": 8}), r"not comparable: tokens 7680 \(a\) vs 15360 \(b\)"),
    case("32 steps", runs(*COMPARE, training={"steps": 90}), r"not comparable: tokens 7680 \(a\) vs 11520 \(b\)"),
    case(
        "32 steps alone",
        runs(*COMPARE, training={"steps": 120}, data={"batch_size": 2}),
        r"not comparable: steps 60 \(a\) vs 120 \(b\)",
    ),
    case(
        "32 length",
        runs(*COMPARE, data={"batch_size": 8, "sequence_length": 16}),
        r"not comparable: sequence length 32 \(a\) vs 16 \(b\)",
    ),
    # 33: run folders of a newer version, damaged ones, half ones
    *(
        case(
            f"33 newer {given[0]}",
            newer(*given),
            r"config\.toml: written by a newer version \(schema 3, this reads ≤ \d\)",
        )
        for given in (["report", "runs"], ["spectrum", "runs/a"], ["plan", "runs/a/config.toml"], RESUME)
    ),
    case("33 newer diff", newer("runs", "diff", "runs/a", "runs/a"), "written by a newer version"),
    case("33 newer start", newer("spectrum", "runs/a", "runs/a/final"), "written by a newer version"),
    case(
        "33 schema 0",
        damaged("config.toml", "schema_version = 0", *RESUME),
        "schema_version: expected a whole number",
    ),
    *(
        case(f"33 cut {given[0]}", damaged("config.toml", "[model", *given), r"runs/a/config\.toml: not valid TOML")
        for given in (["report", "runs"], ["spectrum", "runs/a"], RESUME)
    ),
    *(
        case(f"33 cut status {given[0]}", damaged("status.json", '{"sta', *given), r"runs/a/status\.json: is damaged")
        for given in (["report", "runs"], ["spectrum", "runs/a"], ["runs", "runs"], RESUME)
    ),
    case(
        "33 no number", damaged("status.json", '{"step": "x"}', "runs", "runs"), r"status\.json: is damaged \(step\)"
    ),
    case(
        "33 half spectrum",
        half("spectrum", "runs/a"),
        r"runs/a: run not finished \(stopped at step 20 of 60\)",
        "--resume",
    ),
    case("33 half final", half("spectrum", "runs/a", "runs/a"), "runs/a: run not finished", "--resume"),
    case("33 begun", half(*TRAIN), r"--out runs/a: holds a run \(stopped\); continue it with --resume"),
    case("33 half status", half("status", "runs"), code=0, shown=("1 stopped", "20/60")),
    case("33 killed status", half("status", "runs", state="running"), code=0, shown=("1 killed", "20/60")),
    case("33 half runs", half("runs", "runs"), code=0, shown=(r"\n *a +.* 20  stopped",)),
    case(
        "33 damaged status",
        damaged("status.json", "[]", "status", "runs"),
        code=0,
        shown=(r"a +damaged .*status\.json",),
    ),
    case(
        "33 no numbers",
        damaged("status.json", '{"step": "x"}', "status", "runs"),
        code=0,
        shown=("a +damaged .*step",),
    ),
    *(
        case(
            f"33 no settings {given[0]}",
            half(*given, without=("config.toml",)),
            "runs(/a)?: (is|holds|exists) ",
        )
        for given in (["report", "runs"], ["spectrum", "runs/a"], RESUME, ["runs", "runs"], ["status", "runs"])
    ),
    case("33 no folder", arguments("status", "runs"), "runs: no such folder"),
]


def tree(folder: Path) -> dict[str, object]:
    """All that is below a folder: the content of files, where links lead."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        found[name] = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


@pytest.mark.parametrize("bad", CASES, ids=[bad.id for bad in CASES])
def test_bad_input_is_one_line_with_the_facts_and_nothing_is_written(bad, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = bad.prepare(tmp_path)
    before = tree(tmp_path)
    code, out, err = run(capsys, *argv)
    lines = [line for line in err.splitlines() if not line.startswith("relora-lab: note: ")]
    assert code == bad.code, err
    assert len(lines) == bool(bad.facts), err
    for fact in bad.facts:
        assert re.search(fact, lines[0])
    for fact in bad.shown:
        assert re.search(fact, out)
    assert bad.shown or not out
    assert tree(tmp_path) == before
    assert all(line.isprintable() and len(line) < 600 for line in lines)


def test_bad_input_from_python_is_said_with_the_same_facts():
    linear = torch.nn.Sequential(torch.nn.Linear(344, 128))
    frame = pd.DataFrame({"label": ["a", "b"], "seed": 0, "loss": [1.0, 2.0], "corpus": ["a1b2" * 16, "c3d4" * 16]})
    for call, fact in (
        (lambda: wrap(linear, rank=300), "rank 300 .*128×344"),
        (lambda: wrap(linear, rank=0), r"method\.rank: must be ≥ 1 \(got 0\)"),
        (lambda: changed(tiny_tables(), method={"reset_ratio": 99}), r"did you mean 0\.99\?"),
        (lambda: require_comparable(frame), "not comparable: corpus a1b2a1b2 .* vs c3d4c3d4"),
        (lambda: paired_difference(frame, "a", "b"), "not comparable: corpus a1b2a1b2 .* vs c3d4c3d4"),
    ):
        with pytest.raises(ValueError, match=fact):
            call()
