"""Means with their errors, differences paired by seed, and p-values of several comparisons."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from analysis.load import require_comparable

EPS = float(np.finfo(float).eps)


class Paired(NamedTuple):
    """A mean difference a − b over `n` seeds, its 95 % t interval, and how many differences are < 0 and > 0.

    `bootstrap` is the 95 % percentile bootstrap interval, `p` that of the two-sided paired t test. With few seeds
    the bootstrap stands beside t, not in its place: it is too narrow, by about √((n − 1)/n) and by what t has more
    than 1.96 (4.30 for three seeds); of two or three seeds it is no more than the range of their differences.
    With one seed there is no interval, (nan, nan), and p is nan. If all differences are equal, to rounding, the
    intervals are that value, and p is nan: there is no spread that t could be measured by.
    """

    mean: float
    interval: tuple[float, float]
    n: int
    signs: tuple[int, int]
    bootstrap: tuple[float, float]
    p: float


def paired_difference(frame: pd.DataFrame, a: str, b: str, *, value: str = "loss") -> Paired:
    """The difference a − b, paired by seed: runs of one seed begin with the same weights and see the same batches.

    `frame` has a row a run with columns label, seed and `value` (as load_runs), a and b being labels; or a row
    a seed with columns a and b. Seeds that one of the two lacks, or where it has no value, are left out; with
    none left the mean is nan and n is 0. Raises ValueError for a label that is not there, or there twice a seed;
    BadInput, naming what differs, for runs that are not comparable (load.require_comparable).
    """
    return _paired(pairs(frame, a, b, value=value), {a: 1.0, b: -1.0})


def contrast(frame: pd.DataFrame, weights: Mapping[str, float], *, value: str = "loss") -> Paired:
    """The sum of weight × value over labels, paired by seed: a difference of differences, a mean of differences.

    `frame` and errors as in paired_difference; seeds that one of the labels lacks are left out.
    """
    return _paired(by_seed(frame, list(weights), value=value), weights)


def _paired(values: pd.DataFrame, weights: Mapping[str, float]) -> Paired:
    """The weighted sum of columns, a value a row."""
    sums = (values * pd.Series(weights)).sum(axis=1)
    signs = int((sums < 0).sum()), int((sums > 0).sum())
    mean, n, error = float(sums.mean()), len(sums), standard_error(sums)
    half = error * float(stats.t.ppf(0.975, n - 1)) if n > 1 else math.nan
    bootstrap, p = (math.nan, math.nan), math.nan
    if n > 1:
        # Losses that differ by the same amount do so to rounding alone, of which a t test would make p = 1e-30.
        equal = sums.max() - sums.min() <= 4 * EPS * values.abs().max(axis=None)
        bootstrap = (mean, mean) if equal else _bootstrap(sums.to_numpy())
        p = math.nan if equal else 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    return Paired(mean, (mean - half, mean + half), n, signs, bootstrap, p)


def pairs(frame: pd.DataFrame, a: str, b: str, *, value: str = "loss") -> pd.DataFrame:
    """The values that paired_difference compares: columns a and b, a row a seed that has both."""
    return by_seed(frame, [a, b], value=value)


def by_seed(frame: pd.DataFrame, labels: Sequence[str], *, value: str = "loss") -> pd.DataFrame:
    """A column a label, a row a seed in which all of them finished and have a value."""
    labels = list(labels)
    if "label" in frame:
        missing = set(labels) - set(frame["label"])
        if missing:
            raise ValueError(
                f"no run is labelled '{min(missing)}'; there are {', '.join(map(str, set(frame.label)))}"
            )
        frame = frame[frame["label"].isin(labels)]
        require_comparable(frame)
        if frame.duplicated(["label", "seed"]).any():
            raise ValueError("two runs have the same label and seed")
        if "state" in frame:
            frame = frame[frame["state"] == "finished"]
        frame = frame.assign(label=frame["label"].astype(str)).pivot(index="seed", columns="label", values=value)
        frame = frame.reindex(columns=labels)
    return frame[labels].astype(float).dropna()


def _bootstrap(values: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean (Efron 1979), the same each time."""
    random = np.random.default_rng(0)
    found = stats.bootstrap((values,), np.mean, method="percentile", random_state=random)  # rng= from scipy 1.15
    low, high = found.confidence_interval
    return float(low), float(high)


def holm(p_values: Iterable[float]) -> list[float]:
    """Each p adjusted for all of them being compared at once (Holm 1979, step-down), in the order given.

    The kth smallest of m is multiplied by m − k + 1, is at least what those below it became, and at most 1. The
    probability that any adjusted p is at most 0.05 where there is no difference is then at most 0.05, however the
    p depend on each other. A nan is no comparison: it stays nan and does not count in m. Raises ValueError for any
    other value that is not in [0, 1].
    """
    p = np.array(list(p_values), dtype=float)
    if ((p < 0) | (p > 1)).any():
        raise ValueError("a p-value lies in [0, 1]")
    m = int((~np.isnan(p)).sum())
    smallest_first = np.argsort(p, kind="stable")[:m]  # nan last
    adjusted = np.full(len(p), math.nan)
    adjusted[smallest_first] = np.minimum(1, np.maximum.accumulate(p[smallest_first] * np.arange(m, 0, -1)))
    return [float(one) for one in adjusted]


def standard_error(values: pd.Series) -> float:
    """Sample standard deviation / √n; nan for fewer than two values."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def summarise(runs: pd.DataFrame, *values: str) -> pd.DataFrame:
    """A row a label: n (finished runs), the mean and standard error of each value over them (columns `value` and
    `value_error`), and `remark`: in words, what is not among them, or why there is no error.

    Raises BadInput, naming what differs, for runs that are not comparable (load.require_comparable).
    """
    require_comparable(runs)
    all_seeds = set(runs["seed"])
    rows = []
    for label, group in runs.groupby("label", observed=True):
        done = group[group["state"] == "finished"]
        row: dict[str, object] = {"label": label, "n": len(done)}
        for value in values:
            known = done[value].astype(float).dropna()
            row |= {value: float(known.mean()), f"{value}_error": standard_error(known)}
        rows.append(row | {"remark": "; ".join(_remarks(group, all_seeds))})
    return pd.DataFrame(rows).astype({"label": runs["label"].dtype})


def _remarks(group: pd.DataFrame, all_seeds: set[int]) -> Iterator[str]:
    for state, others in group[group["state"] != "finished"].groupby("state"):
        steps = ", ".join(f"at step {step}" for step in sorted(set(others["step"])))
        yield f"{state} {steps} ({seeds_in_words(others['seed'])})"
    missing = all_seeds - set(group["seed"])
    if missing:
        yield f"{seeds_in_words(missing)} missing"
    if (group["state"] == "finished").sum() == 1:
        yield "one seed: no error"


def seeds_in_words(seeds: Iterable[int]) -> str:
    """ "seed 0, 1"."""
    return "seed " + ", ".join(map(str, sorted(seeds)))
