"""Noise, what stands out of it, and tails: each against random matrices and samples of which the answer is known."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate

from analysis.random_matrix import marchenko_pastur, marchenko_pastur_density, tail_exponents

SHAPES = [(100, 300), (300, 100), (240, 250), (20, 2000)]


def spectrum(sigma, rows, cols):
    """A spectra frame of one matrix."""
    sigma = np.sort(sigma)[::-1]
    place = {"matrix": "m", "layer": 3, "role": "q", "rows": rows, "cols": cols}
    return pd.DataFrame({**place, "index": range(len(sigma)), "sigma": sigma})


def noise(rows, cols, seed=0, std=1.0):
    """iid Gaussian entries."""
    return std * np.random.default_rng(seed).standard_normal((rows, cols))


def of(function, W):
    """The one row of a function of spectra."""
    [row] = function(spectrum(np.linalg.svd(W, compute_uv=False), *W.shape)).to_dict("records")
    return row


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("std", [1e-3, 1.0, 1e100])
def test_noise_is_recovered_and_nothing_stands_out_of_it(shape, std):
    row = of(marchenko_pastur, noise(*shape, std=std))
    assert row["noise"] == pytest.approx(std, rel=0.01 if max(shape) > 250 else 0.02)
    assert row["above"] == row["energy_above"] == 0
    small, large = sorted(shape)
    assert row["lower"] == pytest.approx(row["noise"] * (large**0.5 - small**0.5))
    assert row["upper"] == pytest.approx(row["noise"] * (large**0.5 + small**0.5))
    assert (row["matrix"], row["layer"], row["rows"]) == ("m", 3, shape[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_planted_spikes_are_counted_with_their_energy(shape):
    random = np.random.default_rng(1)
    U, V = (np.linalg.qr(random.standard_normal((n, 3)))[0] for n in shape)
    spikes = 3 * (shape[0] ** 0.5 + shape[1] ** 0.5) * np.array([1.0, 2.0, 3.0])
    W = noise(*shape) + (U * spikes) @ V.T
    row = of(marchenko_pastur, W)
    assert row["above"] == 3
    assert row["noise"] == pytest.approx(1, rel=0.04)
    assert row["energy_above"] == pytest.approx((spikes**2).sum() / (W**2).sum(), rel=0.1)


def test_one_matrix_of_noise_in_hundreds_has_a_value_above():
    frames = [spectrum(np.linalg.svd(noise(40, 160, s), compute_uv=False), 40, 160) for s in range(300)]
    found = marchenko_pastur(pd.concat([frame.assign(run=run) for run, frame in enumerate(frames)]))
    assert len(found) == 300
    assert found["above"].gt(0).mean() <= 0.01
    assert found["noise"].mean() == pytest.approx(1, rel=0.005)


def test_without_a_bulk_or_finite_entries_nothing_is_said():
    left, right = noise(60, 10), noise(10, 50, 1)
    for W in (left @ right, np.zeros((5, 7))):
        row = of(marchenko_pastur, W)
        assert all(pd.isna(row[name]) for name in ("noise", "lower", "upper", "above", "energy_above"))
    found = marchenko_pastur(spectrum([np.nan, 1.0], 2, 3))
    assert found.iloc[0, 5:].isna().all()
    assert found["above"].dtype == "Int64"


@given(st.integers(1, 500), st.integers(1, 500), st.floats(1e-3, 1e3))
def test_the_density_integrates_to_one_over_its_edges_alone(rows, cols, std):
    low, high = std * abs(rows**0.5 - cols**0.5), std * (rows**0.5 + cols**0.5)
    # In the angle, so that quadrature sees neither edge.
    half, middle = (high - low) / 2, (high + low) / 2

    def by_angle(phi):
        return marchenko_pastur_density(middle - half * np.cos(phi), rows, cols, std) * half * np.sin(phi)

    assert integrate.quad(by_angle, 0, np.pi)[0] == pytest.approx(1, abs=1e-6)
    outside = marchenko_pastur_density([low * (1 - 1e-9) - 1e-9 * std, high * (1 + 1e-9)], rows, cols, std)
    assert outside.tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(300, 300), *SHAPES[:2]])
def test_the_density_is_that_of_the_singular_values_of_noise(shape):
    sigma = np.linalg.svd(noise(*shape, std=0.3), compute_uv=False)
    edges = np.quantile(sigma, np.linspace(0, 1, 6))[1:-1]
    for edge, share in zip(edges, (0.2, 0.4, 0.6, 0.8), strict=True):
        area = integrate.quad(lambda x: float(marchenko_pastur_density(x, *shape, 0.3)), 0, edge, limit=200)[0]
        assert area == pytest.approx(share, abs=0.01)


def test_a_square_matrix_of_noise_has_a_quarter_circle_of_singular_values():
    y = np.linspace(0, 2, 21)
    density = marchenko_pastur_density(y * 10, 25, 25, 2.0)
    np.testing.assert_allclose(density, np.sqrt(4 - y**2) / np.pi / 10, atol=1e-12)
    for bad in ((0, 5, 1.0), (5, 5, 0.0), (5, 5, float("nan")), (5, 5, float("inf"))):
        with pytest.raises(ValueError, match="must be > 0"):
            marchenko_pastur_density(1.0, *bad)


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.2, 0.01])
def test_the_median_is_that_of_the_density_and_of_gavish_and_donohos_table(beta):
    """ω(β) = λ*(β) / √μ_β is about 0.56β³ − 0.95β² + 1.82β + 1.43 (their Section III); 2.858 at β = 1."""
    cols = 1000
    rows = round(beta * cols)
    std = marchenko_pastur(spectrum([1.0] * 3, rows, cols))["noise"][0]  # of which 1 is the median
    below = integrate.quad(lambda x: float(marchenko_pastur_density(x, rows, cols, std)), 0, 1, limit=200)
    assert below[0] == pytest.approx(0.5, abs=1e-6)
    root = 1 / (std * cols**0.5)  # √μ_β
    shrink = np.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + np.sqrt(beta**2 + 14 * beta + 1)))
    assert shrink / root == pytest.approx(0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43, abs=0.03)
    if beta == 1:
        assert shrink / root == pytest.approx(2.858, abs=5e-4)


def fitted(values):
    """alpha, xmin, n and distance for every start of a tail, by the definitions, one by one."""
    x = np.sort(values)
    for least in np.unique(x)[:-9]:
        tail = x[x >= least]
        n = len(tail)
        alpha = 1 + n / np.log(tail / least).sum()
        cdf = 1 - (tail / least) ** (1 - alpha)
        distance = max(np.abs(np.arange(1, n + 1) / n - cdf).max(), np.abs(np.arange(n) / n - cdf).max())
        yield distance, alpha, least, n


@given(st.lists(st.floats(0.01, 100).map(lambda x: round(x, 2)), min_size=10, max_size=150))
def test_a_tail_is_the_best_of_all_fits(sigma):
    row = tail_exponents(spectrum(sigma, len(sigma), 200)).iloc[0]
    candidates = sorted(fitted(np.square(sigma))) if len(set(sigma)) >= 10 else []
    if not candidates:
        assert row[["alpha", "alpha_stderr", "xmin", "tail", "ks"]].isna().all()
        return
    assert row["ks"] == pytest.approx(candidates[0][0], abs=1e-9)
    [mine] = [found for found in candidates if found[2] == pytest.approx(row["xmin"], rel=1e-9)]
    assert mine == pytest.approx((row["ks"], row["alpha"], row["xmin"], row["tail"]), rel=1e-8)
    assert row["alpha_stderr"] == pytest.approx((mine[1] - 1) / mine[3] ** 0.5, rel=1e-8)


@pytest.mark.parametrize("alpha", [1.8, 2.5, 4.0])
@pytest.mark.parametrize("scale", [1e-120, 1.0, 1e120])
def test_the_exponent_of_a_pareto_sample_is_found_above_a_body_that_is_none(alpha, scale):
    random = np.random.default_rng(0)
    tail = 5.0 * (1 - random.random(1500)) ** (-1 / (alpha - 1))
    values = np.concatenate([tail, random.uniform(0.5, 5.0, 1500)])
    row = tail_exponents(spectrum(scale * np.sqrt(values), 3000, 3000)).iloc[0]
    assert row["alpha"] == pytest.approx(alpha, abs=4 * row["alpha_stderr"])
    assert row["xmin"] / scale**2 == pytest.approx(5, rel=0.3)
    assert row["tail"] == (values >= row["xmin"] / scale**2 * (1 - 1e-9)).sum()
    assert row["ks"] < 0.03


def test_zeros_to_rounding_are_in_no_tail_and_few_values_are_none():
    heavy = np.sqrt(1 / np.linspace(0.01, 1, 50))
    alone = tail_exponents(spectrum(heavy, 100, 100)).iloc[0, 5:]
    beside = tail_exponents(spectrum([*heavy, *[1e-8] * 30, *np.geomspace(1e-12, 1e-7, 20)], 100, 100)).iloc[0, 5:]
    pd.testing.assert_series_equal(alone, beside)
    for sigma in (np.arange(1.0, 10), [2.0] * 50, [0.0] * 20, [np.nan] * 20):
        found = tail_exponents(spectrum(sigma, 50, 50))
        assert found.iloc[0, 5:].isna().all()
        assert found["tail"].dtype == "Int64"


def test_extreme_scales_overflow_xmin_alone():
    sigma = np.geomspace(1, 1000, 40)
    rows = [tail_exponents(spectrum(sigma * scale, 40, 40)).iloc[0] for scale in (1.0, 1e-300, 1e300)]
    assert [row["xmin"] for row in rows[1:]] == [0.0, np.inf]
    for row in rows[1:]:
        np.testing.assert_allclose(*(r[["alpha", "tail", "ks"]].astype(float) for r in (row, rows[0])), rtol=1e-8)
