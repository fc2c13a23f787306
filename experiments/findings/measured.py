"""Run folders as one table: a row a run, with every value that a claim is of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import wasserstein_distance

from analysis import counts, cycles, load_runs, logs, norms, products, spectra
from analysis.load import by_size_and_task
from analysis.measures import of_runs as measure_of
from experiments.findings.rates import rate
from relora_lab.errors import require
from relora_lab.runs import RunFolder

HIGH = 1.5  # singular values that P1 calls exceptionally high
EARLY = 50  # updates: those of GaLore's first subspace
ABOUT = ["run", "label", "seed", "method", "size", "state", "step", "loss", "perplexity"]


def of_grids(folders: Mapping[str, Path]) -> pd.DataFrame:
    """The runs of several grids, by name: `grid`, then of_runs' columns. Runs on text are measured together, so that
    one grid's can be told by the full run of another; each task's by themselves, their labels with the table's name:
    "table8/lora-packages". Raises BadInput for a grid with a run that has not ended."""
    loaded = {grid: load_runs(folder) for grid, folder in folders.items()}
    for grid, runs in loaded.items():
        left = runs[~runs["state"].isin(["finished", "diverged"])]
        require(left.empty, f"{folders[grid]}: {len(left)} of {len(runs)} runs have not ended; train the grid again")
    text = [grid for grid, runs in loaded.items() if runs["task"].isna().all()]
    frames = [of_runs(load_runs([folders[grid] for grid in text]))] if text else []
    for grid in [grid for grid in folders if grid not in text]:
        found = [of_runs(mine) for mine in by_size_and_task(loaded[grid]).values()]
        frames += [mine.assign(label=f"{grid.partition('-')[0]}/" + mine["label"]) for mine in found]
    by_folder = {folder.resolve(): grid for grid, folder in folders.items()}
    found = pd.concat(frames, ignore_index=True)
    found.insert(0, "grid", [by_folder[Path(path).resolve().parent] for path in found.pop("path")])
    return found.sort_values(["grid", "label", "seed"], key=_in_order(folders), ignore_index=True)


def of_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a run of one size: what it is, how it ended, and its values (missing where it has none).

    seconds: what its updates took. lr: the peak rate of the phase that methods differ in (low-rank, or else full).
    loss: held-out, nats. score: of its task, percent. diverged: 1 or 0. early: mean training loss of the first 50
    updates. rise: the largest rise of the held-out loss by a restart itself. orphans: the most entries that a restart
    left with a first moment alone. overlap: mean cos² between the subspaces of successive cycles, of both sides, less
    what chance gives. W_drop, sBA_drop: the largest share of its norm that a merged matrix, or all s·B·A, lose at a
    restart. Of ΔW: rank and ceiling (means over matrices), gap (the largest difference of the two), zero (percent of
    its values that are 0 by rank), effective (mean effective rank), below and high (percent of σ < 0.1 and ≥ 1.5),
    largest (σ1 of any matrix), to_full (Wasserstein distance of its pooled σ to those of the full run of its seed).
    product_high: percent of σ ≥ 1.5 of s·B·A itself, of runs that are nothing else (P1's LoRA); drawn_high: that, or
    else high, as P1 draws them.
    """
    found = runs[[*ABOUT, "path"]].astype({"label": str})
    found["lr"] = [rate(RunFolder(path).config) for path in runs["path"]]
    measure = measure_of(runs)
    found["score"] = measure.values(runs)[measure.column] if measure.column != "perplexity" else np.nan
    found["diverged"] = (runs["state"] == "diverged").astype(int)
    environments = [RunFolder(path).environment for path in runs["path"]]
    found["torch"] = [facts["torch"].partition("+")[0] for facts in environments]
    found["python"] = [facts["python"] for facts in environments]
    found["seconds"] = [_seconds(path) for path in runs["path"]]
    found["early"] = [logs.read(path, "metrics")["loss"][:EARLY].mean() for path in runs["path"]]
    for values in (_of_restarts(runs), _of_norms(runs), _of_overlaps(runs), _of_updates(runs), _of_products(runs)):
        found = found.join(values, on="path" if values.index.name == "path" else "run")
    return found.assign(drawn_high=found["product_high"].fillna(found["high"]))


def _seconds(path: str) -> float:
    """What the updates of a run took, of one process."""
    log = logs.read(path, "metrics")
    return float((log["tokens"].diff().fillna(log["tokens"]) / log["tokens_per_second"]).sum())


def _of_restarts(runs: pd.DataFrame) -> pd.DataFrame:
    """rise and orphans, by path."""
    found = {}
    for path in runs["path"]:
        restarts = pd.DataFrame([facts for facts in RunFolder(path).cycle_facts() if facts.get("event") == "restart"])
        if len(restarts):
            found[path] = {"rise": restarts["function_jump"].max(), "orphans": restarts["orphans"].max()}
    return _frame(found, ["rise", "orphans"])


def _of_norms(runs: pd.DataFrame) -> pd.DataFrame:
    """W_drop and sBA_drop, by path."""
    found = {}
    for path in runs["path"]:
        traces = norms.norm_traces(path)
        sides = [traces[traces["moment"] == moment].set_index(["step", "matrix"]) for moment in ("before", "after")]
        if len(sides[0]):
            of_sBA = [np.sqrt((side["sBA"] ** 2).groupby("step").sum()) for side in sides]
            merged = 1 - sides[1]["W_merged"] / sides[0]["W_merged"]
            found[path] = {"W_drop": merged.max(), "sBA_drop": (1 - of_sBA[1] / of_sBA[0]).max()}
    return _frame(found, ["W_drop", "sBA_drop"])


def _of_overlaps(runs: pd.DataFrame) -> pd.DataFrame:
    """overlap, by run."""
    found = cycles.of_runs(runs)
    excess = found["overlap"].astype(float) - found["chance"].astype(float)
    return excess.groupby(found["run"]).mean().rename("overlap").to_frame()


def _of_updates(runs: pd.DataFrame) -> pd.DataFrame:
    """What is told of ΔW, by run."""
    ranks, sigma = counts.of_runs(runs), spectra.of_runs(runs)
    if sigma.empty:
        return _frame({}, ["rank"], "run")
    by_run = ranks.astype({"rank": float, "ceiling": float, "below": float, "total": float}).groupby("run")
    found = by_run[["rank", "ceiling"]].mean()
    found["gap"] = (ranks["ceiling"] - ranks["rank"]).astype(float).groupby(ranks["run"]).max()
    totals = by_run[["rank", "below", "total"]].sum()
    found["zero"] = 100 * (1 - totals["rank"] / totals["total"])
    found["effective"] = counts.rank_measures(sigma).groupby("run")["effective_rank"].mean()
    found["below"] = 100 * totals["below"] / totals["total"]
    pooled = sigma.groupby("run")["sigma"]
    found["high"], found["largest"] = 100 * pooled.apply(_share_high), pooled.max()
    return found.assign(to_full=_to_full(runs, sigma))


def _to_full(runs: pd.DataFrame, sigma: pd.DataFrame) -> pd.Series:
    """Wasserstein distance of a run's pooled singular values to those of the full run of its seed, by run."""
    full = runs[(runs["method"] == "full") & (runs["label"] == "full")].set_index("seed")["run"]
    by_run = {run: mine["sigma"].to_numpy() for run, mine in sigma.groupby("run")}
    others = runs[runs["run"].isin(by_run) & runs["seed"].isin(full.index) & ~runs["control"]]
    distances = {
        run: wasserstein_distance(by_run[run], by_run[full[seed]])
        for run, seed in zip(others["run"], others["seed"], strict=True)
        if full[seed] in by_run
    }
    return pd.Series(distances, dtype=float)


def _of_products(runs: pd.DataFrame) -> pd.DataFrame:
    """product_high, by run."""
    found = products.of_runs(runs)
    if found.empty:
        return _frame({}, ["product_high"], "run")
    sigma = found[found["product"]].groupby("run")["sigma"]
    return (100 * sigma.apply(_share_high)).rename("product_high").to_frame()


def _share_high(sigma: pd.Series) -> float:
    return float((sigma >= HIGH).mean())


def _frame(found: Mapping[str, Mapping[str, float]], columns: list[str], index: str = "path") -> pd.DataFrame:
    return pd.DataFrame.from_dict(dict(found), orient="index", columns=columns, dtype=float).rename_axis(index)


def _in_order(folders: Mapping[str, Path]) -> Any:
    """Grids as they are given, all else by name."""
    ranks = {grid: rank for rank, grid in enumerate(folders)}
    return lambda column: column.map(ranks) if column.name == "grid" else column
