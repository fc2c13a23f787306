"""How the runs of a report were made: their settings, what they ran on, and how they ended."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from analysis import tables
from analysis.report.part import Part, prefixed
from relora_lab.runs import RunFolder

NAMES = ("settings", "runs", "in_common")  # of the tables made here, which every report has
VERSIONS = ("relora_lab", "torch", "transformers", "python", "device", "cpu_capability", "threads", "git_commit")


def differing(runs: pd.DataFrame, size: str) -> Part:
    """The settings in which the runs differ, a row a run."""
    differ = [name for name in _settings(runs) if runs[name].nunique(dropna=False) > 1]
    frame = runs[["run", *differ]].convert_dtypes().rename(columns=lambda name: str(name).replace("_", " "))
    floats = frame.select_dtypes("Float64").columns
    shown = _text(frame.assign(**{name: frame[name].map("{:g}".format, na_action="ignore") for name in floats}))
    title = "What the runs differ by" + (f" ({size})" if size else "")
    note = "All other settings are the same."
    return Part("tables", prefixed("settings", size), title, note, frame, shown)


def in_common(runs: pd.DataFrame) -> Part:
    """Settings that all runs have, a row a setting."""
    same = [name for name in _settings(runs) if runs[name].nunique(dropna=False) == 1]
    values = runs[same].iloc[0].dropna()
    frame = pd.DataFrame({"setting": values.index, "value": values.map(str).to_numpy()})
    return Part("tables", "in_common", "What the runs have in common", "Settings of all runs.", frame, _text(frame))


def made(runs: pd.DataFrame) -> Part:
    """How each run ended and what it was made with; the numbers have every setting too."""
    settings = runs[_settings(runs)].to_dict("records")
    frame = pd.DataFrame([_of_run(run, mine) for (_, run), mine in zip(runs.iterrows(), settings, strict=True)])
    shown = _text(frame[["run", "state", *VERSIONS, "folder"]])
    note = "Each folder holds its settings, logs and weights. The CSV has every setting of every run too."
    return Part("tables", "runs", "Runs", note, frame, shown)


def _of_run(run: pd.Series, settings: Mapping[Any, Any]) -> dict[str, Any]:
    state = f"{run['state']} at step {run['step']}" + (f": {run['reason']}" if isinstance(run["reason"], str) else "")
    about = {"run": run["run"], "state": state}
    by = {**dict.fromkeys(VERSIONS), **dict(_flat(RunFolder(run["path"]).environment))}
    by["git_commit"] = str(by["git_commit"])[:8] if by["git_commit"] else None
    # What is known of the run comes last: nothing that stands in a file of it takes its place.
    return {**about, **by, **settings, **about, "folder": run["path"]}


def _flat(table: Mapping[str, object], before: str = "") -> Iterator[tuple[str, object]]:
    """The values of nested tables, by names like corpus.tokenizer."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _settings(runs: pd.DataFrame) -> list[str]:
    return [name for name in runs.columns if "." in name]


def _text(frame: pd.DataFrame) -> pd.DataFrame | None:
    return None if frame.empty else tables.shown(frame)
