"""Singular values of ΔW = W_final − W_start, for every matrix that two checkpoints share."""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm import tqdm

from analysis.checkpoints import Matrix, open_checkpoint, shared_matrices
from relora_lab.errors import require
from relora_lab.runs import RunFolder

FIRST = ["label", "seed", "run"]
COLUMNS = ["matrix", "layer", "role", "rows", "cols", "index", "sigma"]
NATIVE = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
CHUNK = 1024  # columns of a matrix that are widened to float64 at a time


@dataclass(frozen=True)
class Comparison:
    """What two checkpoints differ by.

    `spectra` has a row a singular value: matrix, layer, role, rows, cols, index (0 is the largest), sigma.
    `matrices` has a row a matrix: matrix, layer, role, rows, cols, dtype (the coarser of both), rms (of the
    final W), frobenius (‖ΔW‖_F), nonfinite (how many entries of ΔW are NaN or infinite; its sigmas are then NaN).
    `left_out` counts the tensors of the final checkpoint that were not compared.
    """

    spectra: pd.DataFrame
    matrices: pd.DataFrame
    left_out: int


def singular_values(matrix: ArrayLike | Tensor, method: Literal["gram", "svd"] = "gram") -> np.ndarray:
    """The min(rows, cols) singular values of a matrix, descending, float64.

    "gram" takes the square roots of the eigenvalues of the Gram matrix of the smaller side, summed in float64:
    exact to about 1e-8 of the largest value, several times faster than "svd" (LAPACK gesdd in float64), which
    is there to check it. Input of any float or integer type; float64 stays float64. Raises ValueError for what
    is no matrix, is complex or is not finite.
    """
    W = matrix if isinstance(matrix, Tensor) else torch.from_numpy(np.array(matrix))
    if W.dim() != 2:
        raise ValueError(f"singular values need a matrix, got an array of {W.dim()} dimensions")
    if W.is_complex():
        raise ValueError("singular values of complex matrices are not implemented")
    if not W.numel():
        return np.empty(0)
    if method not in ("gram", "svd"):
        raise ValueError(f"method must be 'gram' or 'svd' (got {method!r})")
    W = W.detach() if W.dtype in NATIVE else W.detach().double()
    largest = float(W.abs().max())
    if not math.isfinite(largest):
        raise ValueError("the matrix has non-finite entries")
    # A power of two, so that scaling rounds nothing and squares neither overflow nor vanish.
    scale = math.ldexp(1.0, math.frexp(largest)[1] - 1)
    if method == "svd":
        return (torch.linalg.svdvals(W.double() / scale) * scale).cpu().numpy()
    small = W if W.shape[0] <= W.shape[1] else W.T
    gram = torch.zeros(len(small), len(small), dtype=torch.float64, device=W.device)
    for part in small.split(CHUNK, dim=1):
        wide = part.double() / scale
        gram.addmm_(wide, wide.T)
    squares = torch.linalg.eigvalsh(gram).flip(0)
    return (squares.clamp(min=0).sqrt() * scale).cpu().numpy()


def delta_spectra(
    start: str | Path,
    final: str | Path,
    *,
    match: str | Sequence[str] | None = None,
    workers: int | None = None,
) -> pd.DataFrame:
    """Singular values of ΔW of every shared matrix: matrix, layer, role, rows, cols, index, sigma (descending).

    See `compare` for the arguments; this is its `spectra`. Raises BadInput where every ΔW is exactly zero.
    """
    comparison = compare(start, final, match=match, workers=workers)
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
    workers: int | None = None,
    progress: bool = False,
) -> Comparison:
    """Compare two checkpoints: run folders (warm_start/ of `start`, final/ of `final`), Hugging Face folders, files.

    `match`: globs of matrix names (default: every linear map of the blocks). `workers` matrices are worked on at
    a time (default: as many as there are cores), each by one thread, and so many are in memory. A matrix with
    non-finite entries is marked and left out. Raises BadInput where the two do not fit.
    """
    require(workers is None or workers >= 1, f"--workers: must be ≥ 1 (got {workers})")
    sides = open_checkpoint(start, "warm_start"), open_checkpoint(final, "final")
    matrices = shared_matrices(*sides, match)
    workers = min(len(matrices), workers or len(os.sched_getaffinity(0)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            bar = tqdm(total=len(matrices), desc="spectra", unit="matrix", disable=not progress or len(matrices) < 50)
            measured = []
            for found in pool.map(_measure, matrices):
                measured.append(found)
                bar.update()
            bar.close()
    finally:
        torch.set_num_threads(threads)
    table = pd.DataFrame([facts for facts, _ in measured])
    spectra = pd.concat(
        [_rows(m, sigma) for m, (_, sigma) in zip(matrices, measured, strict=True)], ignore_index=True
    )
    return Comparison(spectra, table, left_out=len(sides[1].tensors) - len(matrices))


def of_run(run: str | Path) -> Comparison:
    """`compare` of a finished run's warm_start/ and final/; a second look at the same weights costs nothing."""
    folder = RunFolder(run)
    weights = [path.stat() for end in ("warm_start", "final") for path in sorted(folder.weights(end).iterdir())]
    return _of_run(folder.path, tuple((facts.st_mtime_ns, facts.st_size) for facts in weights))


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


@lru_cache(maxsize=256)
def _of_run(path: Path, weights: tuple[tuple[int, int], ...]) -> Comparison:  # noqa: ARG001 (part of the key)
    return compare(path, path)


def _measure(matrix: Matrix) -> tuple[dict[str, Any], np.ndarray]:
    delta, final = matrix.delta()
    nonfinite = int(delta.numel() - torch.isfinite(delta).sum())
    smaller = min(delta.shape)
    facts = {
        "matrix": matrix.name,
        "layer": matrix.layer,
        "role": matrix.role,
        "rows": matrix.rows,
        "cols": matrix.cols,
        "dtype": matrix.dtype,
        "rms": float(final.double().square().mean().sqrt()),
        "frobenius": float(delta.double().norm()),
        "nonfinite": nonfinite,
    }
    return facts, np.full(smaller, np.nan) if nonfinite else singular_values(delta)


def _rows(matrix: Matrix, sigma: np.ndarray) -> pd.DataFrame:
    place = {"matrix": matrix.name, "layer": matrix.layer, "role": matrix.role}
    return pd.DataFrame(
        {**place, "rows": matrix.rows, "cols": matrix.cols, "index": range(len(sigma)), "sigma": sigma}
    )
