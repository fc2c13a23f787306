"""Shared fixtures: golden numbers, and the settings of a run of seconds on real text."""

import argparse
import atexit
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import settings

from relora_lab import cli, config
from relora_lab.settings import RunConfig

settings.register_profile("deterministic", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("deterministic")
torch.set_num_threads(1)

# Spectra that a test computes are not those that another, or the user, finds again.
os.environ["RELORA_LAB_CACHE"] = tempfile.mkdtemp(prefix="relora-lab-tests-")
atexit.register(shutil.rmtree, os.environ["RELORA_LAB_CACHE"], ignore_errors=True)

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"


def golden(name: str) -> Any:
    """A golden file's JSON."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def tensors(name: str) -> dict[str, torch.Tensor]:
    """A golden file's tensors."""
    return safetensors.torch.load_file(GOLDEN / f"{name}.safetensors")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where `make faults` leaves its table."""
    parser.addoption("--faults-csv", help="the table of what survived as a CSV file")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What `make faults` prints: how many tries of each experiment (their tests name it) ended as they must."""
    if "faults" not in config.option.markexpr or config.option.markexpr == "not faults":
        return
    tries, survived = Counter[str](), Counter[str]()
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            noted = dict(report.user_properties)
            if "experiment" in noted and (report.when == "call" or outcome == "error"):
                tries[noted["experiment"]] += noted.get("tries", 1)
                survived[noted["experiment"]] += noted.get("survived", int(outcome == "passed"))
    rows = [(name, count, survived[name]) for name, count in sorted(tries.items())]
    lines = ["| experiment | tries | survived |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {count} | {kept} |" for name, count, kept in rows]
    terminalreporter.section("faults")
    terminalreporter.write("\n".join([*lines, f"| **all** | {tries.total()} | {survived.total()} |", ""]))
    if config.option.faults_csv:
        import pandas as pd  # not in every process that a fault strikes

        from analysis import output

        table = pd.DataFrame(rows, columns=["experiment", "tries", "survived"])
        output.write_csv(Path(config.option.faults_csv), table)


@pytest.fixture
def tiny() -> dict[str, Any]:
    """A fresh copy of tiny_tables()."""
    return tiny_tables()


def tiny_tables() -> dict[str, Any]:
    """TOML tables of a ReLoRA run of 60 updates (20 of them warm start, restarts at 34 and 48) on one real file."""
    return {
        "model": {"size": "demo", "hidden": 16, "intermediate": 40, "heads": 2},
        "data": {"corpus": argparse.__file__, "sequence_length": 32, "batch_size": 4},
        "method": {"name": "relora", "rank": 2, "restart_every": 14, "restart_warmup": 3, "optimizer_reset": "zero"},
        "training": {
            "steps": 60,
            "warm_start": 20,
            "norms_every": 10,
            "eval_every": 25,
            "eval_tokens": 512,
            "checkpoint_every": 8,
        },
        "optimizer": {"lr": 3e-3, "low_rank_lr": 6e-3, "betas": [0.9, 0.95], "warmup_steps": 5},
    }


def assert_near(found: Iterable[torch.Tensor], expected: Iterable[torch.Tensor], tolerance: float) -> None:
    """Each tensor is within `tolerance` of the other's largest entry."""
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        difference = (one.detach().double() - other.detach().double()).abs().max()
        assert float(difference) <= tolerance * float(other.detach().abs().max())


def kept_for_backward(function: Callable[[], Any], own: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """What autograd keeps of a call: a tensor of each storage, but those of `own`."""
    kept: dict[int, torch.Tensor] = {tensor.untyped_storage().data_ptr(): tensor for tensor in own}
    known = len(kept)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)  # held, so that no other gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return list(kept.values())[known:]


def run(capsys: Any, *arguments: object) -> tuple[Any, str, str]:
    """(exit code, stdout, stderr) of the command relora-lab."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def changed(table: dict[str, Any], **parts: dict[str, Any]) -> RunConfig:
    """The tables with some fields replaced; a new method name replaces the whole method."""
    tables = {name: dict(part) for name, part in table.items()}
    for name, part in parts.items():
        fresh = name == "method" and part.get("name", table["method"]["name"]) != table["method"]["name"]
        tables[name] = dict(part) if fresh else {**tables.get(name, {}), **part}
    return config.parse(tables)
