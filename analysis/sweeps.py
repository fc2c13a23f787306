"""Sweeps: labels that differ in one numeric setting alone, found in any set of runs."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from analysis import measures
from analysis.measures import Measure

# What a run is called, and what decides how it is watched or on what it runs, not how it trains.
ASIDE = {"training.seed", "training.reference_step", "training.threads", "training.norms_every"}
ASIDE |= {"training.eval_every", "training.checkpoint_every", "training.snapshot_every"}
FOLLOWS = {"method.rank": "method.alpha", "optimizer.lr": "optimizer.low_rank_lr"}  # unless set by itself
LIKE_LORA = ("method.rank", "method.base", "method.quantise")
COLUMNS = ["setting", "recipe", "value", "label", "n", "perplexity", "perplexity_error", "loss", "loss_error"]
COLUMNS += ["difference", "less", "interval_low", "interval_high"]
COLUMNS += ["gap", "gap_less", "gap_interval_low", "gap_interval_high", "remark"]

Key = tuple[tuple[str, str], ...]  # a recipe: every setting but the one that varies


def one_setting(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a setting, recipe and value (`label`), for every numeric setting that two or more labels differ in alone.

    setting is table.field; recipe says in words what its rows have in common and other recipes of that setting have
    not: the method, and settings where two recipes have one method. value is a float; n, the means with standard
    errors over seeds, and remark are those of statistics.summarise. difference is the held-out loss (nats) less that
    of `less`, the smallest value of the recipe at which a run finished, paired by seed; gap is the loss less that of
    `gap_less`, the label that trains LoRA without restarts and is else like it: of the same rank, base and codes,
    and settings outside [method]. Both with their 95 % t intervals; NaN where there is nothing to compare. Of a task
    its score stands in place of perplexity, and of the loss that is compared (analysis.measures). Seeds, and
    settings that only decide how a run is watched, are put aside; alpha may follow the rank, and low_rank_lr lr. Rows
    are ordered by setting, recipe (as labels are) and value; empty, with these columns, where none varies alone.
    """
    measure = measures.of_runs(runs)
    measured = measure.summarise(runs, "loss").set_index("label")
    first = runs.drop_duplicates("label").set_index("label")
    loras, rows = _loras(first), list[dict[str, Any]]()
    for setting in _numeric(first):
        recipes = _recipes(first, setting)
        for name, (_, values) in zip(_names(recipes), recipes, strict=True):
            less = next((label for label in values if measured.loc[label, "n"]), None)
            for label, value in values.items():
                row = {"setting": setting, "recipe": name, "value": value, "label": label, **measured.loc[label]}
                row |= _compared(measure, runs, label, less, ("difference", "less", "interval"))
                names = ("gap", "gap_less", "gap_interval")
                rows.append(row | _compared(measure, runs, label, loras.get(label), names))
    frame = pd.DataFrame(rows, columns=[name.replace("perplexity", measure.column) for name in COLUMNS])
    return frame.astype({"value": float, "label": runs["label"].dtype, "n": int})


def _numeric(first: pd.DataFrame) -> list[str]:
    """Settings that are numbers, with two or more values."""
    settings = [name for name in first.columns if "." in name and name not in ASIDE]
    return [name for name in settings if first[name].nunique() > 1 and all(map(_is_number, first[name].dropna()))]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)


def _recipes(first: pd.DataFrame, setting: str) -> list[tuple[Key, dict[str, float]]]:
    """The labels that differ in `setting` alone, with its values in order: a dict a recipe, by its key."""
    follower = FOLLOWS.get(setting)
    found: dict[Key, dict[str, float]] = {}
    for ratio in (True, False) if follower in first else (False,):
        groups: dict[Key, dict[str, float]] = {}
        for label, run in first[first[setting].notna()].iterrows():
            groups.setdefault(_key(run, setting, follower if ratio else None), {})[str(label)] = float(run[setting])
        for key, values in groups.items():
            if len(set(values.values())) > 1 and values not in found.values():
                found[key] = dict(sorted(values.items(), key=lambda item: item[1]))
    return list(found.items())


def _key(run: pd.Series, setting: str, follower: str | None) -> Key:
    """Every setting but `setting` as text; the one that follows it as a multiple of it."""
    others = {name: value for name, value in run.items() if "." in str(name) and name not in {*ASIDE, setting}}
    if follower:
        others[follower] = f"{float(others[follower]) / float(run[setting]):.9g} × {_short(setting)}"
    return tuple((str(name), _text(value)) for name, value in others.items())


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "unset"
    return f"{value:g}" if _is_number(value) else str(value)


def _names(recipes: list[tuple[Key, dict[str, float]]]) -> Iterator[str]:
    """What tells each from the others: size if they have several, method, and as few settings as that needs."""
    keys = [dict(key) for key, _ in recipes]
    sized = ["model.size"] if len({key["model.size"] for key in keys}) > 1 else []
    for key in keys:
        told, alike = [*sized, "method.name"], keys
        for name in (*told, *key):
            same = [other for other in alike if other[name] == key[name]]
            if name not in told and len(same) < len(alike):
                told.append(name)
            alike = same
        text = {name: f"{_short(name)} {key[name]}" for name in told}
        yield ", ".join(text[name] if name not in ("model.size", "method.name") else key[name] for name in told)


def _short(name: str) -> str:
    return name.rpartition(".")[2].replace("_", " ")


def _loras(first: pd.DataFrame) -> dict[str, str]:
    """The LoRA without restarts that is like it, of each label that has one."""
    alike = [name for name in first if name in LIKE_LORA or ("." in name and not name.startswith("method."))]
    settings = first[[name for name in alike if name not in ASIDE]].map(_text).apply(tuple, axis=1)
    plain = (first["method"] == "lora") & ~first[["restarts", "reset", "jagged"]].any(axis=1)
    loras = {key: str(label) for label, key in settings[plain].items()}
    return {str(label): loras[key] for label, key in settings.items() if key in loras}


def _compared(
    measure: Measure, runs: pd.DataFrame, label: str, less: str | None, names: tuple[str, str, str]
) -> dict[str, Any]:
    """The paired difference, under these names; NaN without another label."""
    difference, other, interval = names
    if less is None or less == label:
        return {difference: math.nan, other: None, f"{interval}_low": math.nan, f"{interval}_high": math.nan}
    found = measure.paired_difference(runs, label, less)
    low, high = found.interval
    return {difference: found.mean, other: less, f"{interval}_low": low, f"{interval}_high": high}
