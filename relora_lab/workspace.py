"""A folder of runs: run folders, and hidden beside them what they share."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relora_lab import files
from relora_lab.config import SCHEMA_VERSION
from relora_lab.errors import require
from relora_lab.runs import RunFolder


def check_place(out: Path) -> None:
    """Raise BadInput if no folder can be at `out`, or it is a run's or inside one; leaves nothing."""
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    require(writable, f"--out {out}: cannot be written ({there} is no folder to write into)")
    require(not RunFolder(out).started, f"--out {out}: is a run folder; choose another one")
    run = next((folder for folder in Path(os.path.realpath(out)).parents if _is_run(folder)), None)
    require(run is None, f"--out {out}: is inside the run folder {run}; choose another one")


def _is_run(folder: Path) -> bool:
    run = RunFolder(folder)
    return run.started and bool(run.environment)  # a config.toml alone may be another project's


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


def stages_trained(runs: Path) -> tuple[int, int]:
    """How many updates the stages below `runs` have made, and how many of them are being trained."""
    made, training, begun = 0, 0, dict[str, int]()
    for stage in sorted(stage_folders(runs), key=lambda stage: int(stage.path.name.rpartition("-")[2])):
        digest, status = stage.path.name.rpartition("-")[0], stage.status
        step = int(status.get("step", 0))
        made += max(0, step - begun.get(digest, 0))
        begun[digest] = step
        training += status.get("state") == "running" and stage.held
    return made, training


def longest_stage(runs: Path, digest: str, *, below: int) -> RunFolder | None:
    """The finished stage of that digest which ends last before step `below`."""
    cuts = sorted(int(path.name.rpartition("-")[2]) for path in (runs / ".stages").glob(f"{digest}-*"))
    found = [stage_folder(runs, digest, cut) for cut in cuts if cut < below]
    finished = [stage for stage in found if stage.state == "finished"]
    return finished[-1] if finished else None


def write_grid(runs: Path, cells: Mapping[str, Any], shared_updates: int) -> None:
    """Store what is known of each cell of the grid that trains below `runs`, and how long its stages are in all."""
    facts = {"schema_version": SCHEMA_VERSION, "shared_updates": shared_updates, "cells": dict(cells)}
    files.write_json(runs / "grid.json", facts)


def read_grid(runs: Path) -> dict[str, Any]:
    """What `write_grid` stored; empty where there is no grid. Raises BadInput for a newer version's."""
    found = files.read_json(runs / "grid.json")
    version = found.get("schema_version", SCHEMA_VERSION)
    newer = f"{runs / 'grid.json'}: written by a newer version (schema {version}, this reads ≤ {SCHEMA_VERSION})"
    require(version == SCHEMA_VERSION, newer)
    return found


def jobs_folder(runs: Path) -> Path:
    """Where workers on other machines leave word for who drives the grid below `runs`."""
    return runs / ".jobs"


def token_cache(runs: Path) -> Path:
    """Where the runs below `runs` keep their token files."""
    return runs / ".tokens"
