"""Singular values of one matrix: from its Gram matrix in float64, or from the factors of which it is made."""

import math
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

NATIVE = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
CHUNK = 2**22  # entries of a matrix that are widened to float64 at a time
WORTHWHILE = 0.6  # of the smaller side: factors of a higher total rank take longer than their product
SAFE = 1e-100  # squares of larger numbers do not vanish, of smaller than its inverse do not overflow
SAFE_SQUARE = 1e-25  # sums of squares that float32 holds without losing any to its ends
CANCELLED = 30.0  # ‖B‖²‖A‖² beyond so many σ₁² loses digits in Gram matrices


class NotFinite(ValueError):
    """The matrix has entries that are NaN or infinite."""


def singular_values(matrix: ArrayLike | Tensor, method: Literal["gram", "svd"] = "gram") -> np.ndarray:
    """The min(rows, cols) singular values of a matrix, descending, float64.

    "gram" takes the square roots of the eigenvalues of the Gram matrix of the smaller side, summed in float64:
    exact to about 1e-8 of the largest value, several times faster than "svd" (LAPACK gesdd in float64), which
    is there to check it. Input of any float or integer type, on any device that has float64; float64 stays float64.
    Raises ValueError for what is no matrix or is complex, NotFinite (a ValueError) for NaN or infinite entries.
    """
    W = matrix if isinstance(matrix, Tensor) else torch.from_numpy(np.array(matrix))
    if W.dim() != 2:
        raise ValueError(f"singular values need a matrix, got an array of {W.dim()} dimensions")
    if W.is_complex():
        raise ValueError("singular values of complex matrices are not implemented")
    if method not in ("gram", "svd"):
        raise ValueError(f"method must be 'gram' or 'svd' (got {method!r})")
    if not W.numel():
        return np.empty(0)
    W = W.detach() if W.dtype in NATIVE else W.detach().double()
    if method == "svd":
        scale = power_of_two(W)
        return (torch.linalg.svdvals(W.double() / scale) * scale).cpu().numpy()
    squares, scale = gram(W)
    return np.sqrt(eigenvalues(squares)) * scale


def gram(W: Tensor) -> tuple[np.ndarray | Tensor, float]:
    """The Gram matrix of the smaller side of W / scale in float64, and scale: a power of two, 1 but for float64.

    Squares of other types neither overflow nor vanish in float64. On the CPU the matrix is numpy's, which calls
    BLAS's syrk for a product with its own transpose (half the work). Raises NotFinite.
    """
    scale = power_of_two(W) if W.dtype == torch.float64 else 1.0
    small = W if W.shape[0] <= W.shape[1] else W.T
    total = product = None
    for part in chunks(small):
        wide = part.double() if scale == 1.0 else part / scale
        chunk: Any = wide.numpy() if wide.device.type == "cpu" else wide
        if total is None:
            total = chunk @ chunk.T
        elif isinstance(chunk, Tensor):
            total.addmm_(chunk, chunk.T)
        else:
            product = np.matmul(chunk, chunk.T, out=product)
            total += product
    assert total is not None
    if not math.isfinite(float(total.trace())):
        raise NotFinite("the matrix has non-finite entries")
    return total, scale


def chunks(W: Tensor) -> tuple[Tensor, ...]:
    """W by columns, as many at a time as are widened together."""
    return W.split(max(1, CHUNK // len(W)), dim=1)


def eigenvalues(symmetric: np.ndarray | Tensor) -> np.ndarray:
    """Eigenvalues of a positive semidefinite matrix, descending; what rounding made negative is 0.

    On the CPU by numpy, whose OpenBLAS took two thirds of the time of torch's MKL where it was measured.
    """
    if isinstance(symmetric, Tensor):
        found = torch.linalg.eigvalsh(symmetric).cpu().numpy()
    else:
        found = np.linalg.eigvalsh(symmetric)
    return np.maximum(found[::-1], 0.0)


def factored_singular_values(
    factors: Iterable[tuple[ArrayLike | Tensor, ArrayLike | Tensor, float]],
) -> np.ndarray:
    """The min(out, in) singular values of Σ scale·B·A, descending, float64, without forming the sum.

    `factors` are (B (out, r), A (r, in), scale), of any ranks. With all B beside and all A below one another the
    sum is BA of total rank k, and BA's non-zero squared singular values are the eigenvalues of the k×k matrix
    Lᵀ(AAᵀ)L, LLᵀ = BᵀB: as exact as `singular_values` of the sum. Where Cholesky fails, or the products cancel (as
    s(BA − B₀A₀) does), QR of both takes its place; where k is more than 0.6·min(out, in), the sum itself.
    Raises ValueError where the shapes do not fit, NotFinite for NaN or infinite entries.
    """
    B, A, weights = _stacked(factors)
    rows, cols = B.shape[0], A.shape[1]
    found, units = np.zeros(min(rows, cols)), [_power(float(np.abs(F).max(initial=0.0))) for F in (B, A, weights)]
    B, A, weights = (F if unit == 1.0 else F / unit for F, unit in zip((B, A, weights), units, strict=True))
    B *= weights
    if worthwhile(B.shape[1], rows, cols):
        core = _of_product(B, A)
        found[: len(core)] = core
    else:
        found[:] = singular_values(B @ A)
    return found * units[0] * units[1] * units[2]


def frobenius(W: Tensor) -> float:
    """‖W‖_F, of float32 and narrower in the dtype's own squares where those are safe. Raises NotFinite."""
    square = sum(float(torch.dot(part, part)) for part in W.reshape(-1).split(2**16))
    if SAFE_SQUARE < square < 1 / SAFE_SQUARE:
        return math.sqrt(square)
    scale = power_of_two(W)
    return scale * math.sqrt(
        sum(float((part.double() / scale).square().sum()) for part in W.reshape(-1).split(2**16))
    )


def worthwhile(rank: int, rows: int, cols: int) -> bool:
    """Is the spectrum of a sum of products of that total rank sooner had from its factors?"""
    return rank <= WORTHWHILE * min(rows, cols)


def power_of_two(W: Tensor) -> float:
    """Of the size of W's largest entry where that needs scaling, or 1: dividing by it rounds nothing. NotFinite."""
    return _power(float(W.abs().max()))


def _of_product(B: np.ndarray, A: np.ndarray) -> np.ndarray:
    """The singular values of B (out, k) times A (k, in), k ≤ both sides; fewer where the rest is zero."""
    BB, AA = B.T @ B, A @ A.T
    kept = (BB.diagonal() > 0) & (AA.diagonal() > 0)
    if not kept.any():
        return np.empty(0)
    if not kept.all():
        return _of_product(B[:, kept], A[kept])
    # Column i of B as long as row i of A: the same product, and the least to lose in either Gram matrix.
    balance = (AA.diagonal() / BB.diagonal()) ** 0.25
    BB, AA = BB * np.outer(balance, balance), AA / np.outer(balance, balance)
    try:
        L = np.linalg.cholesky(BB)
        squares = eigenvalues(L.T @ AA @ L)
        if _spectral_norm(BB) * _spectral_norm(AA) <= CANCELLED * squares[0]:
            return np.sqrt(squares)
    except np.linalg.LinAlgError:
        pass  # columns of B depend on one another
    _, R_B = np.linalg.qr(B * balance)
    _, R_A = np.linalg.qr(A.T / balance)
    return np.linalg.svd(R_B @ R_A.T, compute_uv=False)


def _spectral_norm(symmetric: np.ndarray) -> float:
    """The spectral norm, or up to k^(1/8) times as much."""
    square = symmetric @ symmetric
    return float(np.linalg.norm(square @ square) ** 0.25)


def _stacked(
    factors: Iterable[tuple[ArrayLike | Tensor, ArrayLike | Tensor, float]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All B side by side (out, k), all A one below the other (k, in), and the scale of each of the k, in float64."""
    pairs = [(_array(B), _array(A), float(scale)) for B, A, scale in factors]
    if not pairs:
        raise ValueError("a sum of no products has no shape")
    out, cols = len(pairs[0][0]), pairs[0][1].shape[1]
    for B, A, _ in pairs:
        if len(B) != out or A.shape[1] != cols or B.shape[1] != len(A):
            raise ValueError(f"B {B.shape} and A {A.shape} are no factors of a {out}×{cols} matrix")
    all_B = np.concatenate([B for B, _, _ in pairs], axis=1, dtype=np.float64)
    all_A = np.concatenate([A for _, A, _ in pairs], axis=0, dtype=np.float64)
    return all_B, all_A, np.repeat([scale for _, _, scale in pairs], [len(A) for _, A, _ in pairs])


def _array(factor: ArrayLike | Tensor) -> np.ndarray:
    if isinstance(factor, Tensor):
        factor = (factor.float() if factor.dtype == torch.bfloat16 else factor).detach().cpu().numpy()
    found = np.asarray(factor)
    if found.ndim != 2:
        raise ValueError(f"a factor is a matrix, got an array of {found.ndim} dimensions")
    return found


def _power(largest: float) -> float:
    if not math.isfinite(largest):
        raise NotFinite("the matrix has non-finite entries")
    return 1.0 if SAFE < largest < 1 / SAFE else math.ldexp(1.0, math.frexp(largest)[1] - 1)
