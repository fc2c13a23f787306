"""How many singular values are small, how many are not zero, and how many there can be."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.checkpoints import ROUNDING, role_key
from analysis.spectra import Comparison
from analysis.spectra import of_run as comparison_of
from relora_lab.runs import RunFolder

MATRIX = ["matrix", "layer", "role", "rows", "cols"]
EPS32 = float(np.finfo(np.float32).eps)


def count_singular_values(spectra: pd.DataFrame, threshold: float | Sequence[float] = 0.1) -> pd.DataFrame:
    """Singular values below and above each threshold, a row a matrix and threshold.

    `below` counts sigma < threshold (strictly), `above` sigma ≥ threshold; together they are `total`, the
    matrix's smaller side. P1 counts below 0.1 (Figures 4 and 12). Columns: what identifies a matrix in `spectra`
    (its run's label and seed too, where there), threshold, below, above, total. A matrix of non-finite
    entries has neither: its counts are missing (pd.NA). Raises ValueError for a threshold that is no number ≥ 0.
    """
    thresholds = np.unique(np.asarray(threshold, float))
    if not thresholds.size or not bool((thresholds >= 0).all()):
        raise ValueError(f"thresholds must be numbers ≥ 0 (got {threshold})")
    keys = [name for name in spectra.columns if name not in ("index", "sigma")]
    found = []
    for identity, group in spectra.groupby(keys, sort=False, observed=True):
        sigma = np.sort(group["sigma"].to_numpy())
        finite = bool(np.isfinite(sigma).all())
        for tau in thresholds:
            below = int(np.searchsorted(sigma, tau, side="left"))
            counts = (below, len(sigma) - below) if finite else (pd.NA, pd.NA)
            found.append((*identity, float(tau), *counts, len(sigma)))
    frame = pd.DataFrame(found, columns=[*keys, "threshold", "below", "above", "total"])
    frame = frame.astype({"below": "Int64", "above": "Int64"})
    return frame.astype({name: spectra[name].dtype for name in keys})


def numerical_ranks(comparison: Comparison, *, merges: int = 1) -> pd.DataFrame:
    """The rank of each ΔW as far as rounding lets it be told: matrix, layer, role, rows, cols, rank, floor.

    rank counts sigma > floor = max(eps32·max(rows, cols)·σ1, u·rms(W)·(√rows + √cols)·√merges): the error of a
    float32 product, and the noise of rounding W to its stored dtype once a merge, u = 2⁻²⁴ for float32 and 2⁻⁹
    for bfloat16. (The first term alone calls a rank-384 update stored in bfloat16 full.) The rank of a
    matrix of non-finite entries is missing.
    """
    sigmas = dict(iter(comparison.spectra.groupby("matrix", sort=False)["sigma"]))
    found = []
    for row in comparison.matrices.itertuples():
        sigma = sigmas[row.matrix].to_numpy()
        product = EPS32 * max(row.rows, row.cols) * sigma.max(initial=0.0)
        rounding = ROUNDING[row.dtype] * row.rms * (row.rows**0.5 + row.cols**0.5) * max(merges, 1) ** 0.5
        floor = max(product, rounding)
        found.append((pd.NA if row.nonfinite else int((sigma > floor).sum()), floor))
    ranks = pd.DataFrame(found, columns=["rank", "floor"], index=comparison.matrices.index)
    return comparison.matrices[MATRIX].join(ranks.astype({"rank": "Int64"}))


def rank_ceilings(run: str | Path, matrices: pd.DataFrame) -> pd.DataFrame:
    """What rank ΔW of a run can have at most: matrix, layer, role, rows, cols, ceiling.

    The sum of what its cycles since the reference can have added, and no more than the smaller side: c·r for ReLoRA
    after c cycles, 2·c·r for RePiSSA and ReLoQRa (each cycle adds B₁A₁ − B₀A₀), r for LoRA, 2r for LoRA measured
    from a step at which its factors were not zero. The smaller side for methods whose ΔW is no sum of factor
    pairs (full rank, ReDoRA) and for matrices that have no factors; missing where the run has lost its cycles.
    """
    folder = RunFolder(run)
    cycles = folder.cycle_facts(since=folder.config.training.reference)
    method = folder.config.low_rank
    ceiling = matrices[["rows", "cols"]].min(axis=1).astype("Int64")
    if method is not None and not cycles:
        ceiling[:] = pd.NA
    elif method is not None and all(facts["adds_rank"] is not None for facts in cycles):
        factored = folder.factored_matrices(cycles)
        summed = sum(facts["adds_rank"] for facts in cycles)
        ceiling = ceiling.where(~matrices["matrix"].isin(factored) | (ceiling < summed), summed)
    return matrices[MATRIX].assign(ceiling=ceiling)


def of_run(run: str | Path, threshold: float = 0.1) -> pd.DataFrame:
    """A row a matrix of an ended run: rank, floor, ceiling, and below, above, total at the threshold."""
    comparison = comparison_of(run)
    ranks = numerical_ranks(comparison, merges=merges_since_reference(run))
    ceilings = rank_ceilings(run, comparison.matrices)
    counts = count_singular_values(comparison.spectra, threshold)
    return ranks.merge(ceilings[["matrix", "ceiling"]]).merge(counts[["matrix", "below", "above", "total"]])


def merges_since_reference(run: str | Path) -> int:
    """How many times a run's factors were merged into W after its reference step."""
    folder = RunFolder(run)
    return sum(facts["merged"] for facts in folder.cycle_facts(since=folder.config.training.reference))


def relative_threshold(spectra: pd.DataFrame, runs: pd.DataFrame, factor: float = 0.1) -> list[float]:
    """`factor` × the median singular value of the full-rank runs in `spectra`; empty where there is none."""
    full_runs = runs[(runs["method"] == "full") & ~runs["control"]]
    if full_runs["parameters"].nunique() > 1:
        return []  # of several sizes there is no one median
    full = set(full_runs["run"])
    sigma = spectra.loc[spectra["run"].isin(full), "sigma"].dropna()
    return [factor * float(sigma.median())] if len(sigma) else []


def by_role(comparison: Comparison, thresholds: Sequence[float] = (0.1,), *, merges: int = 1) -> pd.DataFrame:
    """A row a role, and one for all: matrices, largest sigma, rank (its range over matrices), counts at each τ."""
    counts = count_singular_values(comparison.spectra, thresholds)
    ranks = numerical_ranks(comparison, merges=merges)
    rows = []
    for role in [*sorted(set(ranks["role"]), key=role_key), "all"]:
        chosen = ranks["role"] == role if role != "all" else ranks["role"].notna()
        mine = counts[counts["matrix"].isin(ranks.loc[chosen, "matrix"])]
        sigma = comparison.spectra.loc[comparison.spectra["matrix"].isin(mine["matrix"]), "sigma"]
        row = {"role": role, "matrices": int(chosen.sum()), "largest σ": sigma.max()}
        row |= {"rank_low": ranks.loc[chosen, "rank"].min(), "rank_high": ranks.loc[chosen, "rank"].max()}
        for tau, group in mine.groupby("threshold"):
            row |= {
                f"< {tau:.12g}": group["below"].sum(min_count=1),
                f"≥ {tau:.12g}": group["above"].sum(min_count=1),
            }
        rows.append(row)
    return pd.DataFrame(rows)
