"""How many singular values are small, how many are not zero, how many there can be; and other measures of rank."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.cache import remembered
from analysis.checkpoints import ROUNDING
from analysis.naming import MATRIX, role_key
from analysis.spectra import Comparison, files_of, with_weights
from analysis.spectra import of_run as comparison_of
from analysis.spectra import of_runs as spectra_of
from relora_lab.runs import RunFolder

EPS32 = float(np.finfo(np.float32).eps)
MEASURES = {  # of rank_measures, with their dtypes
    "numerical_rank": "Int64",
    "stable_rank": "float64",
    "effective_rank": "float64",
    "participation_ratio": "float64",
    "per": "float64",
    "energy_rank_90": "Int64",
    "energy_rank_99": "Int64",
    "condition_number": "float64",
    "spectral_norm": "float64",
    "frobenius_norm": "float64",
    "nuclear_norm": "float64",
}
TIE = 1e-12  # what rounding can take from a cumulative share of 4096 squares


def count_singular_values(spectra: pd.DataFrame, threshold: float | Sequence[float] = 0.1) -> pd.DataFrame:
    """Singular values below and above each threshold, a row a matrix and threshold.

    `below` counts sigma < threshold (strictly), `above` sigma ≥ threshold; together they are `total`, the
    matrix's smaller side. P1 counts below 0.1 (Figures 4 and 12). Columns: what identifies a matrix in `spectra`
    (its run's label and seed too, where there), threshold, below, above, total, ambiguous. A matrix of non-finite
    entries has neither: its counts are missing (pd.NA). `ambiguous` says that a sigma is within
    max(1e-12, 1e-14·(σ1/sigma)²) of the threshold, relative to sigma: nearer than `singular_values` can tell from a
    Gram matrix, so that the count may be off by such values. Raises ValueError for a threshold that is no number ≥ 0.
    """
    thresholds = np.unique(np.asarray(threshold, float))
    if not thresholds.size or not bool((thresholds >= 0).all()):
        raise ValueError(f"thresholds must be numbers ≥ 0 (got {threshold})")
    keys = _identity(spectra)
    found = []
    for identity, group in spectra.groupby(keys, sort=False, observed=True):
        sigma = np.sort(group["sigma"].to_numpy())
        finite = bool(np.isfinite(sigma).all())
        for tau in thresholds:
            below = int(np.searchsorted(sigma, tau, side="left"))
            counts = (below, len(sigma) - below) if finite else (pd.NA, pd.NA)
            found.append((*identity, float(tau), *counts, len(sigma), finite and _ambiguous(sigma, tau)))
    frame = pd.DataFrame(found, columns=[*keys, "threshold", "below", "above", "total", "ambiguous"])
    frame = frame.astype({"below": "Int64", "above": "Int64", "ambiguous": bool})
    return frame.astype({name: spectra[name].dtype for name in keys})


def rank_measures(spectra: pd.DataFrame, floors: pd.DataFrame | None = None) -> pd.DataFrame:
    """Measures of rank and norms, a row a matrix: what identifies it in `spectra`, then the columns below.

    numerical_rank: how many σ > floor, that of the matrix in `floors` (as numerical_ranks gives; with a column run
        where there are several), by default eps32·max(rows, cols)·σ1.
    stable_rank: ‖·‖_F² / σ1² (Rudelson & Vershynin 2007). effective_rank: exp of the Shannon entropy of σ / Σσ (Roy &
        Vetterli 2007); per: that over the smaller side. participation_ratio: (Σσ²)² / Σσ⁴.
    energy_rank_90, energy_rank_99: the least k whose k largest σ hold 90, 99 % of Σσ²; a share that is 1e-12 short,
        as rounding can leave it where k values hold 90 % exactly, counts as reached.
    condition_number: σ1 / σ_min; infinite where the numerical rank is less than the smaller side, NaN if all is 0.
    spectral_norm, frobenius_norm, nuclear_norm: σ1, √Σσ², Σσ.

    stable_rank ≤ participation_ratio ≤ effective_rank ≤ how many σ are not 0: equal where those are equal. Ranks and
    condition number of tσ are those of σ (a floor that is given is not scaled). A zero matrix has ranks and norms 0;
    of a matrix of non-finite entries all is missing. Raises ValueError where `floors` has no or two rows of a matrix.
    """
    given = None if floors is None else _by_matrix(floors, spectra)

    def measure(about: Mapping[str, Any], sigma: np.ndarray) -> dict[str, float]:
        floor = EPS32 * max(about["rows"], about["cols"]) * sigma[0] if given is None else given(about)
        return _measures(sigma, floor)

    return per_matrix(spectra, measure, MEASURES)


def per_matrix(
    spectra: pd.DataFrame,
    measure: Callable[[Mapping[str, Any], np.ndarray], Mapping[str, float]],
    columns: Mapping[str, str],
) -> pd.DataFrame:
    """A row a matrix of `spectra`: what identifies it, then `columns` (name: dtype) as measured.

    `measure` is given what identifies a matrix and its σ, descending. What it leaves out is missing, as is all of a
    matrix with non-finite entries.
    """
    keys, found = _identity(spectra), []
    for identity, group in spectra.groupby(keys, sort=False, observed=True):
        about, sigma = dict(zip(keys, identity, strict=True)), np.sort(group["sigma"].to_numpy())[::-1]
        found.append(about | dict(measure(about, sigma) if np.isfinite(sigma).all() else {}))
    frame = pd.DataFrame(found, columns=[*keys, *columns])
    return frame.astype({name: spectra[name].dtype for name in keys} | dict(columns))


def numerical_ranks(comparison: Comparison, *, merges: int = 1) -> pd.DataFrame:
    """The rank of each ΔW as far as rounding lets it be told: matrix, layer, role, rows, cols, rank, floor.

    rank counts sigma > floor = max(eps32·max(rows, cols)·σ1, u·rms(W)·(√rows + √cols)·√merges): the error of a
    float32 product, and the noise of rounding W to its stored dtype once a merge, u = 2⁻²⁴ for float32 and 2⁻⁹
    for bfloat16. (The first term alone calls a rank-384 update stored in bfloat16 full.) There is no second term
    where `source` is "factors": ΔW is then known as a sum of products, and not from W. The rank of a matrix of
    non-finite entries is missing.
    """
    sigmas = dict(iter(comparison.spectra.groupby("matrix", sort=False)["sigma"]))
    found = []
    for row in comparison.matrices.itertuples():
        sigma = sigmas[row.matrix].to_numpy()
        product = EPS32 * max(row.rows, row.cols) * sigma.max(initial=0.0)
        floor = product
        if row.source == "weights":
            noise = ROUNDING[row.dtype] * row.rms * (row.rows**0.5 + row.cols**0.5)
            floor = max(floor, noise * max(merges, 1) ** 0.5)
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
    counts = count_singular_values(comparison_of(run).spectra, threshold).set_index("matrix")
    return _ranks_of_run(run).join(counts[["below", "above", "total"]], on="matrix")


@remembered(files_of)
def _ranks_of_run(run: str | Path) -> pd.DataFrame:
    """A row a matrix of an ended run: its numerical rank, the floor it counts from, and the ceiling."""
    comparison = comparison_of(run)
    ranks = numerical_ranks(comparison, merges=merges_since_reference(run))
    return ranks.assign(ceiling=rank_ceilings(run, comparison.matrices)["ceiling"])


def of_runs(runs: pd.DataFrame, threshold: float = 0.1) -> pd.DataFrame:
    """`of_run` of all runs that have both ends of ΔW, with their label and run; empty where none has."""
    spectra = spectra_of(runs)
    if spectra.empty:
        return pd.DataFrame()
    ranks = [_ranks_of_run(run.path).assign(label=run.label, run=run.run) for run in with_weights(runs).itertuples()]
    counts = count_singular_values(spectra[["run", "matrix", "sigma"]], threshold)
    found = pd.concat(ranks).merge(counts[["run", "matrix", "below", "above", "total"]], on=["run", "matrix"])
    return found.astype({"label": runs["label"].dtype})


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
    """A row a role, then one of all matrices, "all" (or longer, if a role is called that): matrices, largest sigma,
    rank (its range over matrices), mean effective rank, counts at each τ."""
    effective = rank_measures(comparison.spectra)
    counts = count_singular_values(comparison.spectra, thresholds)
    ranks = numerical_ranks(comparison, merges=merges)
    roles, total, rows = sorted(set(ranks["role"]), key=role_key), "all", []
    while total in roles:
        total += " roles"
    for role in [*roles, total]:
        chosen = ranks["role"] == role if role != total else ranks["role"].notna()
        mine = counts[counts["matrix"].isin(ranks.loc[chosen, "matrix"])]
        sigma = comparison.spectra.loc[comparison.spectra["matrix"].isin(mine["matrix"]), "sigma"]
        row = {"role": role, "matrices": int(chosen.sum()), "largest σ": sigma.max()}
        row |= {"rank_low": ranks.loc[chosen, "rank"].min(), "rank_high": ranks.loc[chosen, "rank"].max()}
        row["effective rank"] = effective.loc[effective["matrix"].isin(mine["matrix"]), "effective_rank"].mean()
        for tau, group in mine.groupby("threshold"):
            row |= {
                f"< {tau:.12g}": group["below"].sum(min_count=1),
                f"≥ {tau:.12g}": group["above"].sum(min_count=1),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def _identity(spectra: pd.DataFrame) -> list[str]:
    """The columns that tell matrices apart: all but those of a singular value."""
    return [name for name in spectra.columns if name not in ("index", "sigma")]


def _ambiguous(sigma: np.ndarray, tau: float) -> bool:
    """Is tau > 0 as near to one of sigma (ascending, finite) as the error of its square in a Gram matrix?"""
    largest = sigma[-1]
    if tau == 0 or largest == 0:
        return False  # no sigma is below 0; and zeros are exact
    with np.errstate(over="ignore", under="ignore"):  # of squares that are far from any bound
        squares, square = np.square(sigma / largest), np.square(tau / largest)
    return bool((np.abs(squares - square) <= 2 * np.maximum(1e-12 * squares, 1e-14)).any())


def _by_matrix(floors: pd.DataFrame, spectra: pd.DataFrame) -> Callable[[Mapping[str, Any]], float]:
    """The floor of what identifies a matrix, by the columns that `floors` shares with `spectra`."""
    shared = [name for name in _identity(spectra) if name in floors.columns]
    known = dict(zip(zip(*(floors[name] for name in shared), strict=True), floors["floor"], strict=True))
    if len(known) < len(floors):
        raise ValueError("floors has a matrix twice")

    def floor(about: Mapping[str, Any]) -> float:
        place = tuple(about[name] for name in shared)
        if place not in known:
            raise ValueError(f"floors has no {about['matrix']}")
        return float(known[place])

    return floor


def _measures(sigma: np.ndarray, floor: float) -> dict[str, float]:
    largest = float(sigma[0])
    if largest == 0:
        return dict.fromkeys(MEASURES, 0.0) | {"condition_number": float("nan")}
    scaled = sigma / largest  # its squares neither overflow nor all vanish
    squares, total = np.square(scaled), float(scaled.sum())
    energy = np.cumsum(squares)
    share = scaled[scaled > 0] / total
    effective = float(np.exp(-(share * np.log(share)).sum()))
    rank = int((sigma > floor).sum())
    full = rank == len(sigma) and scaled[-1] > 0
    return {
        "numerical_rank": rank,
        "stable_rank": float(energy[-1]),
        "effective_rank": effective,
        "participation_ratio": float(energy[-1] ** 2 / np.square(squares).sum()),
        "per": effective / len(sigma),
        "energy_rank_90": int(np.searchsorted(energy, 0.90 * (1 - TIE) * energy[-1])) + 1,
        "energy_rank_99": int(np.searchsorted(energy, 0.99 * (1 - TIE) * energy[-1])) + 1,
        "condition_number": 1 / float(scaled[-1]) if full else float("inf"),
        "spectral_norm": largest,
        "frobenius_norm": largest * float(energy[-1]) ** 0.5,
        "nuclear_norm": largest * total,
    }
