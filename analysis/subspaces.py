"""Which directions ΔW has: those of another ΔW, of the W it began from? (Those of the cycle before: cycles.py.)

`overlap` of two subspaces is the mean cos² of their principal angles: ‖QᵀR‖_F² / min(p, q) for orthonormal bases
Q (n, p) and R (n, q), which is φ of Hu et al. 2021 (LoRA), Eq. 4. It is 1 where one lies in the other; `chance`,
max(p, q) / n, is its expectation where one of them is uniformly random, since E[QQᵀ] = (p/n)·I.

"out" is the side of the rows (column space, left singular vectors), "in" that of the columns.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from analysis.counts import EPS32
from analysis.matching import Matrix
from analysis.naming import MATRIX, identity
from analysis.singular import chunks, gram, power_of_two

SIDES = ["out", "in"]
OVERLAP = ["largest_cosine", "overlap", "chance"]
DELTAS = [*MATRIX, "side", "top", "rank", "other_rank", *OVERLAP]
ENERGIES = ["out_energy", "out_chance", "in_energy", "in_chance", "both_energy", "both_chance"]
ALIGNMENT = [*MATRIX, "top", "rank", *ENERGIES]
INTRUDERS = [*MATRIX, "top", "rank", "intruders", "least_similar"]
COUNTS = ["rank", "next_rank", "other_rank", "intruders"]
RESOLVED = 1e-6  # of σ1: directions of smaller singular values are not to be had from a float64 Gram matrix


def principal_angles(X: ArrayLike | Tensor, Y: ArrayLike | Tensor) -> np.ndarray:
    """The principal angles between the column spaces of X (n, p) and Y (n, q), in radians, ascending, float64.

    There are min(rank X, rank Y): directions below eps·max(n, p) of the largest singular value count as none, with
    float64's eps for float64 and integers, float32's for all else. Cosines are singular values of QᵀR, sines those of
    what projection on Q leaves of R (Björck & Golub 1973; Knyazev & Argentati 2002): of well-conditioned X and Y
    every angle, however small, is exact to about 1e-15. Raises ValueError for what is no real matrix, has no
    entries or some that are not finite, and for X and Y of different n.
    """
    # Not scipy.linalg.subspace_angles: 1.17 pairs sines and cosines in opposite orders, and of the angles 1e-10 and
    # 1.2 returns the first as 0.
    Q, R = _column_space(X), _column_space(Y)
    if len(Q) != len(R):
        raise ValueError(f"subspaces of {len(Q)} and of {len(R)} dimensions have no angles")
    if Q.shape[1] < R.shape[1]:
        Q, R = R, Q
    shared = Q.T @ R
    cosines = np.linalg.svd(shared, compute_uv=False)
    sines = np.linalg.svd(R - Q @ shared, compute_uv=False)[::-1]
    return np.arctan2(sines, cosines)


def singular_vectors(delta: Tensor, top: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U (rows, k), sigma (k,) descending and V (cols, k), float64: the `top` largest singular triplets of a matrix.

    U and V have orthonormal columns. k < top where fewer sigma are above 1e-6·σ1: the vectors are eigenvectors of
    the Gram matrix of the smaller side, and, of the other side, their products with the matrix. Subspaces are exact
    to about 1e-15·σ1² / (σ_k² − σ_{k+1}²): one that ends between equal sigma is one of many. Raises ValueError for
    what is no matrix or not finite, and for top < 1.
    """
    if delta.dim() != 2 or not delta.numel():
        raise ValueError(f"singular vectors need a matrix, got an array of shape {tuple(delta.shape)}")
    if top < 1:
        raise ValueError(f"top must be ≥ 1 (got {top})")
    W = delta.detach().cpu()
    squares, scale = gram(W)
    values, vectors = np.linalg.eigh(np.asarray(squares))
    sigma = np.sqrt(np.maximum(values[: -top - 1 : -1], 0))
    vectors = vectors[:, : -top - 1 : -1][:, sigma > RESOLVED * sigma[0]]
    small = W if W.shape[0] <= W.shape[1] else W.T
    images = np.concatenate([(part.double() / scale).numpy().T @ vectors for part in chunks(small)])
    # QR in the order of sigma normalises, and keeps orthogonal what rounding would not.
    other, R = np.linalg.qr(images)
    other *= np.copysign(1.0, R.diagonal())
    sigma = np.abs(R.diagonal())
    order = np.argsort(-sigma, kind="stable")
    both = (vectors[:, order], other[:, order])
    U, V = both if small is W else both[::-1]
    return U, sigma[order] * scale, V


def delta_overlaps(first: Sequence[Matrix], second: Sequence[Matrix], top: int = 16) -> pd.DataFrame:
    """Do two ΔW have their largest singular directions in common? Two rows (sides) a matrix, matched by name.

    Columns: matrix, layer, role, rows, cols, side, top, rank and other_rank (how many directions were compared: fewer
    than `top` where a ΔW has fewer, see singular_vectors), largest_cosine, overlap, chance (above). Missing beside a
    ΔW that is 0 or not finite. Raises ValueError where a matrix is on one side only or has another shape.
    """
    others = {matrix.name: matrix for matrix in second}
    alone = {matrix.name for matrix in first} ^ others.keys()
    if alone:
        raise ValueError(f"{min(alone)} is in one of the comparisons only")
    for matrix in first:
        shapes = [(m.rows, m.cols) for m in (matrix, others[matrix.name])]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{matrix.name} is {shapes[0]} in one comparison and {shapes[1]} in the other")
    return frame([row for m in first for row in _delta_overlaps(m, others[m.name], top)], DELTAS)


def alignment(matrices: Sequence[Matrix], top: int = 16) -> pd.DataFrame:
    """How much of ΔW lies in the `top` leading singular directions of W_start; a row a matrix.

    Columns: matrix, layer, role, rows, cols, top, rank (k: fewer than `top` where W_start has fewer directions); and,
    U and V being W_start's, out_energy ‖UᵀΔW‖² / ‖ΔW‖², in_energy ‖ΔW·V‖² / ‖ΔW‖², both_energy ‖UᵀΔW·V‖² / ‖ΔW‖²,
    each with its expectation for entries of ΔW that are independent and alike: k/rows, k/cols, k²/(rows·cols). Norms
    as in Hu et al. 2021 (LoRA), Section 7.3, which projects W on ΔW's directions where this projects ΔW on W's.
    Missing where ΔW is 0 or an end is not finite.
    """
    return frame([_alignment(matrix, top) for matrix in matrices], ALIGNMENT)


def intruder_dimensions(matrices: Sequence[Matrix], top: int = 10, epsilon: float = 0.5) -> pd.DataFrame:
    """How many of W_final's `top` leading left singular vectors are like none of W_start's; a row a matrix.

    An intruder has |cos| < epsilon with every left singular vector of W_start (Shuttleworth et al. 2024, "LoRA vs
    Full Fine-tuning: An Illusion of Equivalence", Algorithm 1). Columns: matrix, layer, role, rows, cols, top, rank
    (how many vectors W_final has among its `top`), intruders, least_similar (the smallest of their largest |cos|).
    W_start has vectors where its sigma are not 0 (see singular_vectors), min(rows, cols) at most: with
    rows > cols what lies outside its column space is like none. Values of an end that is not finite are missing.
    Raises ValueError for epsilon outside (0, 1].
    """
    if not 0 < epsilon <= 1:
        raise ValueError(f"epsilon must be in (0, 1] (got {epsilon})")
    return frame([_intruders(matrix, top, epsilon) for matrix in matrices], INTRUDERS)


def _delta_overlaps(matrix: Matrix, other: Matrix, top: int) -> list[dict[str, Any]]:
    rows = [identity(matrix) | {"side": side, "top": top} for side in SIDES]
    bases = []
    for one in (matrix, other):
        delta = one.delta()
        if not bool(delta.isfinite().all()):
            return rows
        bases.append(singular_vectors(delta, top)[::2])
    for row, Q, R in zip(rows, *bases, strict=True):
        row |= {"rank": Q.shape[1], "other_rank": R.shape[1], **overlap(Q, R)}
    return rows


def _alignment(matrix: Matrix, top: int) -> dict[str, Any]:
    row = identity(matrix) | {"top": top}
    start, final = matrix.ends()
    delta = final - start
    if not bool(start.isfinite().all() and delta.isfinite().all()):
        return row
    U, _, V = singular_vectors(start, top)
    rank = U.shape[1]
    row |= {"rank": rank, "out_chance": rank / matrix.rows, "in_chance": rank / matrix.cols}
    row["both_chance"] = row["out_chance"] * row["in_chance"]
    scaled = (delta.double() / power_of_two(delta)).numpy()
    total = np.linalg.norm(scaled)
    if total > 0:
        projected = U.T @ scaled
        parts = {"out_energy": projected, "in_energy": scaled @ V, "both_energy": projected @ V}
        row |= {name: min(1.0, float(np.linalg.norm(part) / total) ** 2) for name, part in parts.items()}
    return row


def _intruders(matrix: Matrix, top: int, epsilon: float) -> dict[str, Any]:
    row = identity(matrix) | {"top": top}
    start, final = matrix.ends()
    if not bool(start.isfinite().all() and final.isfinite().all()):
        return row
    leading, every = singular_vectors(final, top)[0], singular_vectors(start, min(start.shape))[0]
    most = np.abs(every.T @ leading).max(axis=0, initial=0.0)
    row |= {"rank": len(most), "intruders": int((most < epsilon).sum())}
    return row | ({"least_similar": min(1.0, float(most.min()))} if len(most) else {})


def overlap(Q: np.ndarray, R: np.ndarray) -> dict[str, float]:
    """largest_cosine, overlap and chance of orthonormal bases Q (n, p) and R (n, q); nothing where one is empty."""
    fewer, more = sorted((Q.shape[1], R.shape[1]))
    if not fewer:
        return {}
    cosines = np.minimum(np.linalg.svd(Q.T @ R, compute_uv=False), 1.0)
    shared = float(np.square(cosines).sum()) / fewer
    return {"largest_cosine": float(cosines[0]), "overlap": shared, "chance": more / len(Q)}


def _column_space(X: ArrayLike | Tensor) -> np.ndarray:
    """An orthonormal basis (n, rank), float64."""
    W = X.detach() if isinstance(X, Tensor) else torch.from_numpy(np.array(X))
    if W.dim() != 2 or not W.numel():
        raise ValueError(f"a column space needs a matrix with rows and columns, got shape {tuple(W.shape)}")
    if W.is_complex():
        raise ValueError("angles between complex subspaces are not implemented")
    if not bool(W.isfinite().all()):
        raise ValueError("the matrix has non-finite entries")
    exact = W.dtype == torch.float64 or not W.is_floating_point()
    U, sigma, _ = np.linalg.svd(W.double().cpu().numpy(), full_matrices=False)
    eps = np.finfo(np.float64).eps if exact else EPS32
    return U[:, sigma > eps * max(W.shape) * sigma[0]]


def frame(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """A table in that order of columns: counts as Int64, measures as floats, missing where a row has none."""
    frame = pd.DataFrame(rows, columns=columns)
    measures = [name for name in columns if name not in (*MATRIX, *COUNTS, "cycle", "next_cycle", "side", "top")]
    return frame.astype(dict.fromkeys(set(COUNTS) & set(columns), "Int64") | dict.fromkeys(measures, "float64"))
