"""Settings in and out: TOML to RunConfig and back, digest, run name. Errors are one line naming file and field."""

import difflib
import hashlib
import json
import re
import tomllib
from dataclasses import MISSING, asdict, fields, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import tomli_w
from pydantic import ConfigDict, TypeAdapter, ValidationError

from relora_lab import methods
from relora_lab.errors import BadInput, require
from relora_lab.settings import Data, Divergence, Model, Optimizer, RunConfig, Task, Training

__all__ = ["RunConfig", "as_table", "digest", "dumps", "load", "parse", "run_name"]

SCHEMA_VERSION = 1
TABLES = {
    "model": Model,
    "data": Data,
    "training": Training,
    "optimizer": Optimizer,
    "divergence": Divergence,
    "task": Task,
}
OPTIONAL = ("task",)  # tables that a run has or has not


def load(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Settings from a TOML file; `overrides` like "method.rank=4" replace single values (TOML syntax).

    Raises BadInput, naming file and field.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a byte order mark first
        if not overrides:
            return _of_text(text)
        table = tomllib.loads(text)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is not UTF-8 text (byte {error.start})") from None
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not valid TOML: {error}") from None
    for override in overrides:
        _override(table, override)
    try:
        return parse(table)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None


@lru_cache(maxsize=1024)  # a report of many runs looks at the settings of each a dozen times
def _of_text(text: str) -> RunConfig:
    return parse(tomllib.loads(text))


def parse(table: dict[str, Any]) -> RunConfig:
    """Settings from TOML tables. Raises BadInput for the first field that is unknown, missing or out of range."""
    table = dict(table)
    version = table.pop("schema_version", SCHEMA_VERSION)
    require(
        type(version) is int and version >= 1,
        f"schema_version: expected a whole number ≥ 1, got {_show(version)}",
    )
    require(
        version <= SCHEMA_VERSION, f"written by a newer version (schema {version}, this reads ≤ {SCHEMA_VERSION})"
    )
    known = {part.name for part in fields(RunConfig)}
    for name in table:
        if name not in known:
            raise BadInput(_unknown(name, None))
        require(name == "name" or isinstance(table[name], dict), f"{name}: is a table; write [{name}]")
    wanted = {name: cls for name, cls in TABLES.items() if name in table or name not in OPTIONAL}
    parts = {name: parse_table(name, cls, table.get(name, {})) for name, cls in wanted.items()}
    method = dict(table.get("method", {}))
    require("name" in method, f"method.name: is missing; one of {', '.join(methods.available())}")
    options = methods.options_class(method.pop("name"))
    parts["method"] = parse_table("method", options, method)
    return RunConfig(**parts, name=_parse_value("name", str | None, table.get("name")))


def dumps(config: RunConfig) -> str:
    """TOML of the resolved settings: defaults written out, what is not set left out."""
    return tomli_w.dumps({"schema_version": SCHEMA_VERSION} | as_table(config))


def as_table(config: RunConfig) -> dict[str, Any]:
    """The resolved settings as nested dicts, in a form that `parse` reads back to the same run."""
    method = config.method
    if config.low_rank and config.low_rank.alpha is None:
        method = replace(config.low_rank, alpha=float(config.low_rank.rank))
    training = replace(config.training, reference_step=config.training.reference)
    size = None if config.data.tokenizer == "bytes" else config.data.vocabulary
    data = replace(config.data, vocab_size=size)
    optimizer = config.optimizer
    if config.low_rank:
        optimizer = replace(optimizer, low_rank_lr=config.low_rank_lr)
    table = asdict(replace(config, data=data, method=method, training=training, optimizer=optimizer))
    table["method"] = {"name": config.method_name} | table["method"]
    return {name: _without_none(part) for name, part in table.items() if part is not None}


def differences(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Resolved settings that differ, by table.field: (old, new); None where one has no such field."""
    before, after = _flat(old), _flat(new)
    names = before | after  # in the order of the file
    return {n: (before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n)}


def digest(config: RunConfig) -> str:
    """Eight hex digits of all that is set, whatever the run is called."""
    table = {name: part for name, part in as_table(config).items() if name != "name"}
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:8]


def run_name(config: RunConfig) -> str:
    """The run folder's name: the user's, or method-size-seed-digest, with the task after the size if there is one."""
    return config.name or f"{name_before_seed(config)}-{config.training.seed}-{digest(config)}"


def name_before_seed(config: RunConfig) -> str:
    """What `run_name` has before the seed."""
    task = [config.task.name] if config.task else []
    return "-".join([config.method_name, config.model.size.replace(":", "-"), *task])


def _flat(config: RunConfig) -> dict[str, Any]:
    tables = {table: part for table, part in as_table(config).items() if isinstance(part, dict)}
    return {f"{table}.{name}": value for table, part in tables.items() for name, value in part.items()}


def _without_none(part: Any) -> Any:
    if isinstance(part, dict):
        return {name: _without_none(value) for name, value in part.items() if value is not None}
    return list(part) if isinstance(part, tuple) else part


def _override(table: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    *tables, name = path.strip().split(".")
    require(bool(equals and name), f"--set {override}: write --set table.field=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()  # --set method.name=lora, without quotes
    for part in tables:
        inner = table.setdefault(part, {})
        require(isinstance(inner, dict), f"--set {override}: '{part}' is no table")
        table = inner
    table[name] = value


def parse_table(table: str, cls: type, values: dict[str, Any]) -> Any:
    """The dataclass of a table from its values. Raises BadInput for a field that is unknown, missing or wrong."""
    known = {part.name: part for part in fields(cls)}
    types = get_type_hints(cls)  # a module may write its annotations as text
    for name in values:
        if name not in known:
            raise BadInput(_unknown(name, table, cls))
    for name, part in known.items():
        if name not in values and part.default is MISSING and part.default_factory is MISSING:
            raise BadInput(f"{table}.{name}: is missing")
    return cls(**{n: _parse_value(f"{table}.{n}", types[n], v) for n, v in values.items()})


def _parse_value(path: str, kind: Any, value: Any) -> Any:
    """The value in its declared type, strictly: no text for a number, no 1.5 for a whole number, no true for 1."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise BadInput(f"{path}: expected {_describe(kind)}, got a whole number beyond 64 bits")
    if kind == tuple[float, float] and isinstance(value, list):
        value = tuple(value)  # TOML has lists only
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError:
        hint = ""
        if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", value.strip(), re.IGNORECASE):
            hint = "; write it without quotes"
        elif type(None) in get_args(kind) and (value is False or value in ("", "none", "None", "null", "off")):
            hint = "; for none leave the field out"
        raise BadInput(f"{path}: expected {_describe(kind)}, got {_show(value)}{hint}") from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=ConfigDict(strict=True))


def _describe(kind: Any) -> str:
    plain = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        list[str]: "a list of texts",
        tuple[float, float]: "two numbers",
        type(None): "",
    }
    if kind in plain:
        return plain[kind]
    choices = [_describe(part) if not isinstance(part, str) else f"'{part}'" for part in get_args(kind)]
    return " or ".join(choice for choice in choices if choice)


def _show(value: Any) -> str:
    try:
        text = str(value) if isinstance(value, float) else json.dumps(value, default=str, ensure_ascii=False)
    except (ValueError, RecursionError):  # of 5000 digits, 1000 tables deep
        text = f"a {type(value).__name__} that is too large to be shown"
    kind = "text " if isinstance(value, str) else ""
    return kind + (text if len(text) <= 60 else text[:57] + "...")


def _unknown(name: str, table: str | None, cls: type = RunConfig) -> str:
    """Why a field is refused: it belongs to another table or method, or it is a slip of the pen."""
    where = f"in [{table}]" if table else "at the top"
    known = [part.name for part in fields(cls)]
    owners = {method: {part.name for part in fields(methods.options_class(method))} for method in methods.available()}
    having = [method for method, options in owners.items() if name in options]
    if having and table == "method":
        mine, has = methods.name_of(cls), ", ".join(known) or "none"
        return f"method.{name}: is no setting of {mine} but of {', '.join(having)}; it has {has}"
    if table and name in [part.name for part in fields(RunConfig)]:
        return f"unknown field '{name}' {where}; it belongs at the top"
    homes = {option: "method" for options in owners.values() for option in options}
    homes |= {part.name: home for home, other in TABLES.items() for part in fields(other)}
    if name in homes:
        of = f" (of {', '.join(having)})" if homes[name] == "method" and len(having) == 1 else ""
        return f"'{name}' belongs under '{homes[name]}'{of}, not {where}"
    found = difflib.get_close_matches(name.lower(), [*known, *homes], 1)
    if not found:
        return f"unknown field '{name}' {where}; there are {', '.join(known) or 'none'}"
    [near], home = found, ""
    if near not in known and homes[near] == table:  # of other methods
        home = f" (of {', '.join(method for method, options in owners.items() if near in options)})"
    elif near not in known:
        home = f" (in [{homes[near]}])"
    return f"unknown field '{name}' {where}; did you mean '{near}'{home}?"
