"""Means with their errors, and differences paired by seed."""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pandas as pd
from scipy import stats


class Paired(NamedTuple):
    """A mean difference a − b over `n` seeds, its 95 % t interval, and how many differences are < 0 and > 0.

    With one seed there is no interval: (nan, nan).
    """

    mean: float
    interval: tuple[float, float]
    n: int
    signs: tuple[int, int]


def paired_difference(frame: pd.DataFrame, a: str, b: str, *, value: str = "loss") -> Paired:
    """The difference a − b, paired by seed: runs of one seed begin with the same weights and see the same batches.

    `frame` has a row a run with columns label, seed and `value` (as load_runs), a and b being labels; or a row
    a seed with columns a and b. Seeds that one of the two lacks, or where it has no value, are left out; with
    none left the mean is nan and n is 0. Raises ValueError for a label that is not there, or there twice a seed.
    """
    if "label" in frame:
        missing = {a, b} - set(frame["label"])
        if missing:
            raise ValueError(
                f"no run is labelled '{min(missing)}'; there are {', '.join(map(str, set(frame.label)))}"
            )
        if frame[frame["label"].isin([a, b])].duplicated(["label", "seed"]).any():
            raise ValueError("two runs have the same label and seed")
        if "state" in frame:
            frame = frame[frame["state"] == "finished"]
        frame = frame.assign(label=frame["label"].astype(str)).pivot(index="seed", columns="label", values=value)
        frame = frame.reindex(columns=[a, b])
    differences = (frame[a].astype(float) - frame[b].astype(float)).dropna()
    signs = int((differences < 0).sum()), int((differences > 0).sum())
    mean, n = float(differences.mean()), len(differences)
    half = standard_error(differences) * float(stats.t.ppf(0.975, n - 1)) if n > 1 else math.nan
    return Paired(mean, (mean - half, mean + half), n, signs)


def standard_error(values: pd.Series) -> float:
    """Sample standard deviation / √n; nan for fewer than two values."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def summarise(runs: pd.DataFrame, *values: str) -> pd.DataFrame:
    """A row a label: n (finished runs), the mean and standard error of each value over them (columns `value` and
    `value_error`), and `remark`: in words, what is not among them, or why there is no error."""
    all_seeds = set(runs["seed"])
    rows = []
    for label, group in runs.groupby("label", observed=True):
        done = group[group["state"] == "finished"]
        row: dict[str, object] = {"label": label, "n": len(done)}
        for value in values:
            row |= {value: float(done[value].mean()), f"{value}_error": standard_error(done[value])}
        rows.append(row | {"remark": "; ".join(_remarks(group, all_seeds))})
    return pd.DataFrame(rows).astype({"label": runs["label"].dtype})


def _remarks(group: pd.DataFrame, all_seeds: set[int]) -> Iterator[str]:
    for state, others in group[group["state"] != "finished"].groupby("state"):
        steps = ", ".join(f"at step {step}" for step in sorted(set(others["step"])))
        yield f"{state} {steps} ({_seeds(others['seed'])})"
    missing = all_seeds - set(group["seed"])
    if missing:
        yield f"{_seeds(missing)} missing"
    if (group["state"] == "finished").sum() == 1:
        yield "one seed: no error"


def _seeds(seeds: Iterable[int]) -> str:
    return "seed " + ", ".join(map(str, sorted(seeds)))
