"""A folder of runs: run folders, and hidden beside them what they share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relora_lab import files
from relora_lab.config import SCHEMA_VERSION
from relora_lab.errors import require
from relora_lab.runs import RunFolder


def run_folders(runs: Path) -> list[RunFolder]:
    """The run folders directly below `runs`, by name. Raises BadInput if it is no folder or holds none."""
    require(runs.is_dir(), f"{runs}: no such folder")
    inside = [RunFolder(path) for path in sorted(runs.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    found = [folder for folder in inside if folder.started]
    require(bool(found), f"{runs}: holds no run folder (a run folder has a config.toml)")
    return found


def stage_folder(runs: Path, digest: str, cut: int) -> RunFolder:
    """The folder of the stage of that digest up to step `cut`, which the runs below `runs` share."""
    return RunFolder(runs / ".stages" / f"{digest}-{cut}")


def stage_folders(runs: Path) -> list[RunFolder]:
    """Every stage below `runs`."""
    return [RunFolder(path) for path in sorted((runs / ".stages").glob("*-*"))]


def longest_stage(runs: Path, digest: str, *, below: int) -> RunFolder | None:
    """The finished stage of that digest which ends last before step `below`."""
    cuts = sorted(int(path.name.rpartition("-")[2]) for path in (runs / ".stages").glob(f"{digest}-*"))
    found = [stage_folder(runs, digest, cut) for cut in cuts if cut < below]
    finished = [stage for stage in found if stage.state == "finished"]
    return finished[-1] if finished else None


def write_grid(runs: Path, cells: Mapping[str, Any]) -> None:
    """Store what is known of each cell of the grid that trains below `runs`."""
    files.write_json(runs / "grid.json", {"schema_version": SCHEMA_VERSION, "cells": dict(cells)})


def read_grid(runs: Path) -> dict[str, Any]:
    """What `write_grid` stored; empty where there is no grid. Raises BadInput for a newer version's."""
    found = files.read_json(runs / "grid.json")
    version = found.get("schema_version", SCHEMA_VERSION)
    newer = f"{runs / 'grid.json'}: written by a newer version (schema {version}, this reads ≤ {SCHEMA_VERSION})"
    require(version == SCHEMA_VERSION, newer)
    return dict(found.get("cells", {}))


def token_cache(runs: Path) -> Path:
    """Where the runs below `runs` keep their token files."""
    return runs / ".tokens"
