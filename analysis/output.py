"""Where results go: a folder that is checked before any work, CSV that a spreadsheet cannot run."""

import os
import re
from pathlib import Path
from typing import Any

import pandas as pd

from relora_lab import files
from relora_lab.errors import require
from relora_lab.runs import RunFolder


def check(out: str | Path) -> Path:
    """`out` as a path. Raises BadInput if no folder can be there, or it is a run's or inside one; writes nothing."""
    out = Path(out)
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    require(writable, f"--out {out}: cannot be written ({there} is no folder to write into)")
    require(not RunFolder(out).started, f"--out {out}: is a run folder; choose another one")
    run = next((folder for folder in Path(os.path.realpath(out)).parents if _is_run(folder)), None)
    require(run is None, f"--out {out}: is inside the run folder {run}; choose another one")
    return out


def _is_run(folder: Path) -> bool:
    run = RunFolder(folder)
    return run.started and bool(run.environment)  # a config.toml alone may be another project's


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table, whole or not at all; text that a spreadsheet would run as a formula gets an apostrophe."""
    files.write_text(path, frame.map(_harmless).to_csv(index=False))


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and re.match(r"[=+\-@\t\r]", value) else value
