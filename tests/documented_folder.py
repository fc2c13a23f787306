"""A folder with all that commands of the documentation name, each of it made in seconds."""

import argparse
import json
import re
import shutil
import signal
import tomllib
from itertools import count
from pathlib import Path
from typing import Any

import glue_files
import pytest
import tomli_w
import torch
from checkpoint_files import model
from conftest import ROOT
from safetensors.torch import save_file

from relora_lab import config, grid, train
from relora_lab.errors import Interrupted
from relora_lab.objective import LanguageModelling

SMALL: dict[str, dict[str, Any]] = {  # settings that a command's run has less of, where it has them
    "model": {"size": "demo"},
    "data": {"corpus": argparse.__file__, "sequence_length": 32, "batch_size": 4},
    "method": {"restart_every": 14, "restart_warmup": 3},
    "training": {"steps": 60, "warm_start": 20, "reference_step": 20, "threads": 1, "checkpoint_every": 40},
    "optimizer": {"warmup_steps": 5},
}


def block(page: Path, kind: str) -> str:
    """The first block of this kind on a page."""
    found = re.search(rf"(?ms)^```{kind}\n(.*?)^```", page.read_text())
    assert found, f"{page.name} has no block of {kind}"
    return found[1]


def small(tables: dict[str, Any]) -> dict[str, Any]:
    """The tables of a run with 60 updates on one file."""
    found = {
        name: part | {field: value for field, value in SMALL[name].items() if part.get(field)}
        for name, part in tables.items()
        if name in SMALL
    }
    found["training"] |= {"eval_tokens": 512, "eval_every": 25}
    return found


def small_rows(name: str, *labels: str, profile: str | None = None) -> dict[str, dict[str, Any]]:
    """Rows of a grid that comes along, small."""
    cells = grid.cells(grid.read(Path(name)), [0], profile)
    rows = {label: small(config.as_table(cells[f"{label}-seed0"])) for label in labels}
    for row in rows.values():
        del row["training"]["seed"]
    return rows


def trained(tables: dict[str, Any], out: Path) -> None:
    train.run(config.parse(tables), out)


def stopped(tables: dict[str, Any], out: Path) -> None:
    """A run that a signal has stopped in its low-rank phase."""
    own, updates = LanguageModelling.tokens, count(1)

    def tokens(self: LanguageModelling, batch: Any) -> int:
        if next(updates) == 45:
            signal.raise_signal(signal.SIGTERM)
        return own(self, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(LanguageModelling, "tokens", tokens)
        trained(tables, out)


def adapter(folder: Path) -> None:
    """A PEFT LoRA adapter of rank 2 to the q of every layer of `base`."""
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    random = torch.Generator().manual_seed(0)
    factors = {"A": torch.randn(2, 16, generator=random), "B": torch.randn(16, 2, generator=random)}
    at = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    stored = {at.format(layer, side): W + layer for layer in range(8) for side, W in factors.items()}
    save_file(stored, folder / "adapter_model.safetensors")


def build(place: Path) -> None:
    """Put everything into the folder."""
    settings = small(tomllib.loads(block(ROOT / "README.md", "toml")))
    (place / "relora.toml").write_text(tomli_w.dumps(settings))
    few = small_rows("table6", "none", "warm", "all-shared", profile="cpu")
    (place / "table6.toml").write_text(tomli_w.dumps({"rows": few, "profiles": {"cpu": {"seeds": [0]}}}))

    runs = place / "runs"
    stopped(settings, runs / "relora")
    for label, tables in small_rows("demo", "full", "relora", "lora-warm", "lora").items():
        trained(tables, runs / "demo" / f"{label}-seed0")
    shutil.copytree(runs / "demo", runs / "table6-cpu")
    settings["training"] |= {"warm_start": 0, "steps": 10}
    of_sizes(settings, runs)
    of_tasks(settings, runs / "table8", place / "glue")

    for name, end in {"base-model": "warm_start", "tuned-model": "final"}.items():
        shutil.copytree(runs / "demo" / "relora-seed0" / end, place / name)
    shapes = {f"model.layers.{n}.self_attn.{role}_proj.weight": (16, 16) for n in range(8) for role in "qv"}
    for seed, name in enumerate(("base", "full", "lora", "relora", "my-tuned-model")):
        model(place / name, shapes, seed=seed)
    adapter(place / "my-lora-adapter")

    (place / "my").mkdir()
    for kind, name in {"table": "price", "figure": "bought"}.items():
        (place / "my" / f"{name}.py").write_text(block(ROOT / "docs" / "report.md", f"python {kind}"))


def of_sizes(settings: dict[str, Any], runs: Path) -> None:
    """Runs of two sizes, of which only the names are large."""
    shape = {"hidden": 16, "intermediate": 40, "heads": 2, "layers": 1}
    for size in ("60M", "130M"):
        for method in ({"name": "full"}, {"name": "lora", "rank": 2}):
            tables = settings | {"model": {"size": size, **shape}, "method": method}
            trained(tables, runs / size / f"{method['name']}-seed0")


def of_tasks(settings: dict[str, Any], out: Path, glue: Path) -> None:
    """Runs that fine-tune for two tasks."""
    for split in ("train", "validation"):
        glue_files.write(glue / "rte" / f"{split}.jsonl", glue_files.RTE)
    for task, source in {"rte": {"dataset": str(glue)}, "packages": {}}.items():
        tables = {"task": {"name": task, "eval_examples": 8}, "method": {"name": "full"}, "training": {"steps": 10}}
        tables["data"] = {"sequence_length": 64, "batch_size": 4, **source}
        trained(settings | tables, out / f"full-{task}-seed0")
