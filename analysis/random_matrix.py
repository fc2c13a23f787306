"""Spectra beside those of random matrices: the Marchenko–Pastur law of noise, the power law of heavy tails."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import integrate, optimize

from analysis.counts import EPS32, per_matrix

NOISE = {"noise": "float64", "lower": "float64", "upper": "float64", "above": "Int64", "energy_above": "float64"}
TAIL = {"alpha": "float64", "alpha_stderr": "float64", "xmin": "float64", "tail": "Int64", "ks": "float64"}
TRACY_WIDOM = 3.2722  # what the largest eigenvalue of one matrix of noise in 1000 exceeds, in its standard units
FEWEST = 10  # distinct values of which a power law is fitted
CANDIDATES = 64  # starts of the tail that are tried at a time


def marchenko_pastur(spectra: pd.DataFrame) -> pd.DataFrame:
    """The noise in each matrix and what stands out of it; a row a matrix: what identifies it in `spectra`, and

    noise: the standard deviation of an entry of the iid matrix whose Marchenko–Pastur law has this median singular
        value, median(σ) / √(n·μ_β) with n the larger side (Gavish & Donoho 2014, the estimator for unknown noise).
    lower, upper: the law's edges, noise·(√n ∓ √m) with m the smaller side.
    above: how many σ stand out of noise, with an allowance for finite sizes: the largest eigenvalue of iid Gaussian
        entries exceeds μ + 3.27·s once in 1000 matrices, where √μ = √(n−1) + √m and s = √μ·(1/√(n−1) + 1/√m)^⅓
        (Johnstone 2001, Tracy–Widom law of order 1). So σ² > noise²·(μ + 3.27·s) counts. Of small matrices noise is
        not known so well, and more exceed it: 8 in 1000 of 64×64, 40 of 10×10.
    energy_above: the share of Σσ² that these hold.

    Missing where more than half of the σ are 0 to rounding (≤ eps32·max(rows, cols)·σ1: there is no bulk), and where
    entries are not finite.
    """
    return per_matrix(spectra, _noise, NOISE)


def marchenko_pastur_density(sigma: ArrayLike, rows: int, cols: int, noise: float) -> np.ndarray:
    """The Marchenko–Pastur law of the min(rows, cols) singular values of rows×cols iid entries, at each sigma.

    `noise` is the standard deviation of an entry. The density is over sigma and integrates to 1: for y = sigma /
    (noise·√n) and β = m/n it is √((b² − y²)(y² − a²)) / (π·β·y) / (noise·√n) between a, b = 1 ∓ √β (Marchenko &
    Pastur 1967), n and m the larger and the smaller side. Raises ValueError unless all of these are > 0.
    """
    if not (min(rows, cols) >= 1 and 0 < noise < float("inf")):
        raise ValueError(f"rows, cols and noise must be > 0 (got {rows}, {cols}, {noise})")
    beta = min(rows, cols) / max(rows, cols)
    unit = noise * max(rows, cols) ** 0.5
    y = np.asarray(sigma, float) / unit
    a, b = 1 - beta**0.5, 1 + beta**0.5
    inside = (y >= a) & (y <= b)
    # √(y² − a²) / y: of a square matrix, whose density does not end at 0, it is 1 there too.
    ratio = np.divide(a, y, out=np.zeros_like(y), where=inside & (y > 0))
    squared = np.where(inside, (b**2 - y**2) * (1 - ratio**2), 0.0)
    return np.sqrt(np.maximum(squared, 0.0)) / (np.pi * beta * unit)


def tail_exponents(spectra: pd.DataFrame) -> pd.DataFrame:
    """A power law p(λ) ∝ λ^−α for λ = σ² ≥ xmin; a row a matrix: what identifies it in `spectra`, and

    alpha: 1 + n / Σ ln(λ/xmin), the maximum likelihood of the n values of the tail (Clauset, Shalizi & Newman 2009,
        Eq. 3.1), as WeightWatcher's alpha (Martin & Mahoney 2021). alpha_stderr: (alpha − 1) / √n (Eq. 3.2).
    xmin: the λ for which the fit to the tail is best, that is ks least (Section 3.3). tail: n.
    ks: the largest distance between the distribution functions of tail and fit (Eq. 3.9).

    A tail has at least ten distinct values. σ that are 0 to rounding (≤ eps32·max(rows, cols)·σ1) are left out; with
    fewer than ten others, or entries that are not finite, all is missing. Some fit is found to any spectrum: a power
    law is what a small ks speaks for, not an alpha.
    """
    return per_matrix(spectra, _tail, TAIL)


def _noise(about: Mapping[str, Any], sigma: np.ndarray) -> dict[str, float]:
    small, large = sorted((about["rows"], about["cols"]))
    median = float(np.median(sigma))
    if median <= EPS32 * large * sigma[0]:
        return {}
    unit = median / _median(small / large) ** 0.5  # noise·√n
    noise = unit / large**0.5
    edge = (large - 1) ** 0.5 + small**0.5
    width = edge * (1 / max(large - 1, 1) ** 0.5 + 1 / small**0.5) ** (1 / 3)
    above = int((sigma > noise * (edge**2 + TRACY_WIDOM * width) ** 0.5).sum())
    squares = np.square(sigma / sigma[0])
    return {
        "noise": noise,
        "lower": unit - noise * small**0.5,
        "upper": unit + noise * small**0.5,
        "above": above,
        "energy_above": float(squares[:above].sum() / squares.sum()),
    }


@lru_cache(maxsize=1024)
def _median(beta: float) -> float:
    """μ_β: the median of the Marchenko–Pastur law of eigenvalues of XXᵀ/n, X (β·n, n) of unit variance.

    In λ = 1 + β − 2√β·cos φ its density is smooth, (2/π)·sin²φ / λ on (0, π).
    """

    def density(phi: float) -> float:
        return 2 / np.pi * np.sin(phi) ** 2 / eigenvalue(phi)

    def eigenvalue(phi: float) -> float:
        return (1 - beta**0.5) ** 2 + 4 * beta**0.5 * np.sin(phi / 2) ** 2

    def short_of_half(phi: float) -> float:
        return integrate.quad(density, 0, phi, epsabs=1e-13, epsrel=1e-12)[0] - 0.5

    return float(eigenvalue(optimize.brentq(short_of_half, 1e-6, np.pi, xtol=1e-13)))


def _tail(about: Mapping[str, Any], sigma: np.ndarray) -> dict[str, float]:
    positive = sigma[sigma > EPS32 * max(about["rows"], about["cols"]) * sigma[0]]
    x = 2 * np.log(positive[::-1] / positive[0]) if len(positive) else positive  # ln λ, ascending to 0
    starts = np.flatnonzero(np.diff(x, prepend=-np.inf))[: 1 - FEWEST]
    if not len(starts):
        return {}
    sums = np.cumsum(x[::-1])[::-1]
    parts = np.split(starts, range(CANDIDATES, len(starts), CANDIDATES))
    ks, start, slope = min(_best_start(x, sums, part) for part in parts)
    tail, least = len(x) - start, float(positive[::-1][start])
    return {
        "alpha": 1 + slope,
        "alpha_stderr": slope / tail**0.5,
        "xmin": least * least,
        "tail": tail,
        "ks": ks,
    }


def _best_start(x: np.ndarray, sums: np.ndarray, starts: np.ndarray) -> tuple[float, int, float]:
    """(ks, start, α − 1) of the best fit to a tail x[start:], x ascending, sums[i] that of x[i:]."""
    count = len(x) - starts
    slope = count / (sums[starts] - count * x[starts])
    first = starts[0]
    place = np.arange(first, len(x)) - starts[:, None]  # how many of the tail come before
    fitted = -np.expm1(-slope[:, None] * np.maximum(x[first:] - x[starts, None], 0.0))
    short = fitted - place / count[:, None]  # below the step that the data make at x it is short by this
    distance = np.where(place >= 0, np.maximum(short, 1 / count[:, None] - short), 0.0).max(axis=1)
    best = int(distance.argmin())
    return float(distance[best]), int(starts[best]), float(slope[best])
