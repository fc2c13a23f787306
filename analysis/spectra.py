"""Singular values of ΔW = W_final − W_start, for every matrix that two models share."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from analysis import parallel
from analysis.cache import Cache, Measured, remembered, sha256
from analysis.matching import Matched, Matrix, match_models
from analysis.naming import MATRIX, Selection, identity
from analysis.singular import NotFinite, factored_singular_values, frobenius, singular_values, worthwhile
from analysis.tied import is_telling
from relora_lab.errors import BadInput, one_line, require
from relora_lab.runs import RunFolder

__all__ = [
    *("Comparison", "compare", "delta_spectra", "factored_singular_values", "of_run", "of_runs", "over_training"),
    *("require_change", "singular_values", "with_weights"),
]

FIRST = ["label", "seed", "run"]
COLUMNS = [*MATRIX, "index", "sigma"]
SMALL = 2**21  # entries of all matrices together
Method = Literal["auto", "gram", "svd"]


@dataclass(frozen=True)
class Comparison:
    """What two models differ by.

    `spectra` has a row a singular value: matrix, layer, role, rows, cols, index (0 is the largest), sigma.
    `matrices` has a row a matrix: matrix, layer, role, rows, cols, dtype (the coarser of both), source (of ΔW:
    "weights", or "factors" whose products it is the sum of), rms (of the final W; NaN where that was not read),
    frobenius (‖ΔW‖_F), nonfinite (how many entries are NaN or infinite; its sigmas are then NaN).
    `left_out` counts the tensors of the final model that were not compared.
    """

    spectra: pd.DataFrame
    matrices: pd.DataFrame
    left_out: int


def delta_spectra(start: str | Path, final: str | Path, **options: Any) -> pd.DataFrame:
    """Singular values of ΔW of every shared matrix: matrix, layer, role, rows, cols, index, sigma (descending).

    See `compare` for the arguments; this is its `spectra`. Raises BadInput where every ΔW is exactly zero.
    """
    comparison = compare(start, final, **options)
    require_change(comparison, final)
    return comparison.spectra


def require_change(comparison: Comparison, final: str | Path) -> None:
    """Raise BadInput if every ΔW is exactly zero."""
    changed = bool((comparison.matrices["frobenius"] != 0).any())  # NaN is not 0
    require(changed, f"{final}: ΔW is exactly zero for all {len(comparison.matrices)} matrices: same files?")


def compare(
    start: str | Path,
    final: str | Path,
    *,
    match: str | Sequence[str] | None = None,
    roles: str | Sequence[str] | None = None,
    layers: int | Sequence[int] | None = None,
    method: Method = "auto",
    device: str = "cpu",
    workers: int | None = None,
    cache: bool = True,
    progress: bool = False,
) -> Comparison:
    """Compare two models: run folders (warm_start/ of `start`, final/ of `final`), Hugging Face folders, files, hub
    names; or a model and a PEFT LoRA adapter to it.

    `match` (globs of matrix names), `roles` ("q") and `layers` choose; without globs it is every linear map of the
    blocks. `method` "auto" takes a run's or an adapter's factors where they are the sooner way, and else the Gram
    matrix; "gram" and "svd" always the weights. `workers` matrices are worked on at a time (default: as many as there
    are cores), each by one thread, and so many are in memory. With `cache` a second look at the same files computes
    nothing. A matrix with non-finite entries is marked and left out. Raises BadInput where the two do not fit.
    """
    matched = match_models(start, final, Selection.of(match, roles, layers))
    return compare_matched(
        matched, method=method, device=device, workers=workers, cache=cache, progress="spectra" if progress else ""
    )


def compare_matched(
    matched: Matched,
    *,
    method: Method = "auto",
    device: str = "cpu",
    workers: int | None = None,
    cache: bool = True,
    progress: str = "",
) -> Comparison:
    """`compare` of two models whose matrices are matched already; `progress` names the bar."""
    _check_device(device)
    require(method in ("auto", "gram", "svd"), f"--method: must be auto, gram or svd (got {method!r})")
    measured = _measured(matched.matrices, method, device, workers, cache, progress)
    _refuse_copies(matched.matrices, measured)
    facts = [_facts(matrix, found) for matrix, found in zip(matched.matrices, measured, strict=True)]
    matrices = pd.DataFrame(facts)
    return Comparison(_rows(matrices, [found.sigma for found in measured]), matrices, matched.left_out)


def files_of(run: str | Path) -> list[Path]:
    """The weights and cycles of a finished run."""
    folder = RunFolder(run)
    weights = [file for end in ("warm_start", "final") for file in sorted(folder.weights(end).iterdir())]
    return [*weights, *folder.all_cycle_files]


@remembered(files_of)
def of_run(run: str | Path) -> Comparison:
    """`compare` of a finished run's warm_start/ and final/; a second look at the same weights costs nothing."""
    return compare(run, run)


def of_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Spectra of all runs that have an end, with `label`, `seed` and `run` before `delta_spectra`'s columns."""
    frames = [
        of_run(run.path).spectra.assign(label=run.label, seed=run.seed, run=run.run)
        for run in with_weights(runs).itertuples()
    ]
    if not frames:
        return pd.DataFrame(columns=[*FIRST, *COLUMNS])
    spectra = pd.concat(frames, ignore_index=True)
    spectra["label"] = spectra["label"].astype(runs["label"].dtype)
    return spectra[[*FIRST, *COLUMNS]]


def with_weights(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that have both ends of ΔW. One that diverged before its reference step has none."""
    return runs[[RunFolder(path).has_weights for path in runs["path"]]]


def over_training(run: str | Path) -> pd.DataFrame:
    """Spectra of ΔW of a run's snapshots and of its end: step, then `delta_spectra`'s columns.

    A run keeps snapshots with training.snapshot_every.
    """
    folder = RunFolder(run)
    start = folder.weights("warm_start")
    ends = {**folder.snapshots, int(folder.status["step"]): folder.weights("final")}
    found = [compare(start, end).spectra.assign(step=step) for step, end in ends.items()]
    return pd.concat(found, ignore_index=True)[["step", *COLUMNS]]


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, dtype=torch.float64, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"--device {device}: cannot compute in float64 here ({one_line(error)})") from None


def _measured(
    matrices: Sequence[Matrix], method: Method, device: str, workers: int | None, cached: bool, progress: str
) -> list[Measured]:
    """What is known of each matrix, from the cache or its files."""
    cache = Cache() if cached else None
    if workers is None and sum(matrix.rows * matrix.cols for matrix in matrices) < SMALL:
        workers = 1  # to hand these to threads takes longer than to work on them
    if cache:
        files = list(dict.fromkeys(file for matrix in matrices for file in matrix.files))
        parallel.each(sha256, files, workers=workers, progress=f"{progress}: files" if progress else "", unit="file")
    try:
        return parallel.each(
            partial(_of_matrix, method=method, device=device, cache=cache),
            matrices,
            workers=workers,
            progress=progress,
        )
    finally:
        if cache:
            cache.save()


def _of_matrix(matrix: Matrix, method: Method, device: str, cache: Cache | None) -> Measured:
    factors = matrix.factors if method == "auto" or matrix.final is None else None
    if factors and matrix.final is not None and not worthwhile(factors.rank, matrix.rows, matrix.cols):
        factors = None
    by_weights = f"weights {method.replace('auto', 'gram')} {torch.device(device).type}"
    how = f"factors {method}" if factors else by_weights
    found = cache.get(matrix.files, how, matrix.name) if cache else None
    if found is None:
        found = _of_factors(matrix, method) if factors else _of_weights(matrix, method, device)
        if cache:
            cache.put(matrix.files, how, matrix.name, found)
    return found


def _of_factors(matrix: Matrix, method: Method) -> Measured:
    assert matrix.factors is not None
    pairs = matrix.factors.read()
    nonfinite = sum(int((~torch.isfinite(factor)).sum()) for B, A, _ in pairs for factor in (B, A))
    if nonfinite:
        return _not_finite(matrix, "factors", nonfinite)
    sigma = factored_singular_values(pairs) if method == "auto" else singular_values(matrix.delta(), method)
    return Measured(sigma, "factors", np.nan, 0)


def _of_weights(matrix: Matrix, method: Method, device: str) -> Measured:
    start, final = matrix.ends()
    delta = final - start
    try:
        rms = frobenius(final) / final.numel() ** 0.5
        del start, final
        sigma = singular_values(delta.to(device), "svd" if method == "svd" else "gram")
    except NotFinite:
        return _not_finite(matrix, "weights", int((~torch.isfinite(delta)).sum()))
    if matrix.rows == matrix.cols and np.linalg.norm(sigma) > rms * matrix.rows / 2:
        _refuse_turned(matrix, float(np.linalg.norm(sigma)))
    return Measured(sigma, "weights", rms, 0)


def _refuse_turned(matrix: Matrix, change: float) -> None:
    """Raise BadInput if one W is nearly the other's transpose: no shape tells that of a square matrix."""
    assert matrix.final is not None
    start, final = matrix.ends()
    require(
        frobenius(final - start.T) > change / 2,
        f"{matrix.final.file}: {matrix.name} is nearly the transpose of what {matrix.start.file} holds",
    )


def _refuse_copies(matrices: Sequence[Matrix], measured: Sequence[Measured]) -> None:
    """Raise BadInput if two matrices hold the same numbers on both sides: copies of one that the model shares."""
    seen: dict[tuple[float, ...], Matrix] = {}
    for matrix, found in zip(matrices, measured, strict=True):
        alike = seen.setdefault((matrix.rows, matrix.cols, found.rms, float(found.sigma.sum())), matrix)
        if alike is not matrix and matrix.final and alike.final and found.sigma.any():
            mine, other = matrix.ends(), alike.ends()
            same = is_telling(mine[0]) and all(map(torch.equal, mine, other))
            require(not same, f"{matrix.name} and {alike.name} are copies of one matrix, and would be counted twice")


def _not_finite(matrix: Matrix, source: str, entries: int) -> Measured:
    return Measured(np.full(min(matrix.rows, matrix.cols), np.nan), source, np.nan, entries)


def _facts(matrix: Matrix, found: Measured) -> dict[str, Any]:
    return {
        **identity(matrix),
        "dtype": matrix.dtype,
        "source": found.source,
        "rms": found.rms,
        "frobenius": float(np.linalg.norm(found.sigma)),
        "nonfinite": found.nonfinite,
    }


def _rows(matrices: pd.DataFrame, sigmas: Sequence[np.ndarray]) -> pd.DataFrame:
    """A row a singular value: what identifies its matrix, index and sigma."""
    lengths = [len(sigma) for sigma in sigmas]
    rows = matrices[MATRIX].loc[np.repeat(matrices.index, lengths)].reset_index(drop=True)
    return rows.assign(index=np.concatenate([np.arange(n) for n in lengths]), sigma=np.concatenate(sigmas))
