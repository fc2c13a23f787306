"""Counts below and above a threshold, measures of rank, and figures of what was counted."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from analysis.counts import by_role, count_singular_values, numerical_ranks, rank_measures
from analysis.figures import spectra as histogram
from analysis.singular import singular_values

sigmas = st.lists(st.floats(0, 3), min_size=1, max_size=30)
positive = st.lists(st.floats(1e-3, 3), min_size=1, max_size=30)

KINDS = {
    "gaussian": lambda random, m, n: random.standard_normal((m, n)),
    "low rank": lambda random, m, n: product(random, m, n, 1 + min(m, n) // 3),
    "low rank and noise": lambda random, m, n: product(random, m, n, 1) + 1e-4 * random.standard_normal((m, n)),
    "cauchy": lambda random, m, n: random.standard_cauchy((m, n)),
    "student": lambda random, m, n: random.standard_t(2, (m, n)),
    "graded": lambda random, m, n: random.standard_normal((m, n)) * 10.0 ** random.uniform(-7, 0, n),
    "integers": lambda random, m, n: random.integers(-3, 4, (m, n)).astype(float),
}


def product(random, rows, cols, rank):
    """A matrix of that rank."""
    return random.standard_normal((rows, rank)) @ random.standard_normal((rank, cols))


def allowed(sigma):
    """How far σ² of a Gram matrix may be from σ² (of unit σ1)."""
    return 2 * np.maximum(1e-12 * sigma**2, 1e-14)


def spectrum(*matrices):
    """A spectra frame with a matrix for each list of singular values."""
    frames = [
        pd.DataFrame(
            {
                "matrix": f"m{number}",
                "layer": number,
                "role": "q",
                "rows": len(sigma),
                "cols": 99,
                "index": range(len(sigma)),
                "sigma": sorted(sigma, reverse=True),
            }
        )
        for number, sigma in enumerate(matrices)
    ]
    return pd.concat(frames, ignore_index=True)


@given(st.lists(sigmas, min_size=1, max_size=3), st.lists(st.floats(0, 4), min_size=1, max_size=4, unique=True))
def test_below_is_strict_and_both_together_are_all(matrices, thresholds):
    counts = count_singular_values(spectrum(*matrices), thresholds)
    assert len(counts) == len(matrices) * len(thresholds)
    for row in counts.itertuples():
        sigma = np.array(matrices[row.layer])
        assert (row.below, row.above) == ((sigma < row.threshold).sum(), (sigma >= row.threshold).sum())
        assert row.below + row.above == row.total == len(sigma)


def test_the_papers_threshold_is_the_default_and_a_bad_one_is_refused():
    counts = count_singular_values(spectrum([0.05, 0.1, 0.2]))
    assert counts[["threshold", "below", "above", "total"]].iloc[0].tolist() == [0.1, 1, 2, 3]
    assert set(counts.columns) >= {"matrix", "layer", "role", "threshold", "below", "above", "total"}
    assert len(count_singular_values(spectrum([0.05, 0.2]), [0.1, 0.1])) == 1
    for bad in (-1, float("nan"), []):
        with pytest.raises(ValueError, match="thresholds must be numbers"):
            count_singular_values(spectrum([1.0]), bad)


def check_counts(W, choose):
    """Counts of the spectrum from a Gram matrix are those of a float64 SVD, or ambiguous and rightly so."""
    exact = np.linalg.svd(W, compute_uv=False)
    if exact[0] == 0:
        return
    relative = exact / exact[0]
    told = exact[relative >= 1e-6]
    chosen = choose.choice(told, min(8, len(told)), replace=False)
    delta = np.maximum(1e-12, 1e-14 * (exact[0] / chosen) ** 2)
    taus = chosen[:, None] * (1 + delta[:, None] * np.array([-2, -1, -0.9, 0, 0.9, 1, 2]))
    counts = count_singular_values(spectrum(singular_values(W)), taus.ravel())
    for row in counts.itertuples():
        tau = row.threshold / exact[0]
        slack = (np.abs(relative**2 - tau**2) / allowed(relative)).min()
        assert row.ambiguous or row.below == (exact < row.threshold).sum()
        assert slack < 1.1 if row.ambiguous else slack > 0.9


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6))
@example(1, 1, 0)
@example(1, 40, 0)
def test_a_count_is_that_of_a_float64_svd_or_says_that_it_may_not_be(kind, rows, cols, seed):
    random = np.random.default_rng(seed)
    check_counts(KINDS[kind](random, rows, cols), random)


LARGE = [("gaussian", (512, 1376)), ("low rank", (800, 200)), ("cauchy", (300, 512))]


@pytest.mark.parametrize(("kind", "shape"), LARGE)
def test_counts_of_large_matrices_are_those_of_a_float64_svd_too(kind, shape):
    random = np.random.default_rng(0)
    check_counts(KINDS[kind](random, *shape), random)


def test_few_counts_at_a_threshold_of_no_sigma_are_ambiguous():
    random, taus = np.random.default_rng(0), np.geomspace(1e-4, 0.9, 50)
    frames = [spectrum(singular_values(make(random, 60, 90))) for make in KINDS.values() for _ in range(3)]
    counts = pd.concat([count_singular_values(frame, taus * frame["sigma"].max()) for frame in frames])
    assert counts["ambiguous"].dtype == bool
    assert counts["ambiguous"].mean() < 0.01  # by chance


def test_a_threshold_at_a_sigma_is_ambiguous_whatever_the_scale_but_one_at_zero_is_not():
    for scale in (1e-200, 1e-320, 1.0, 1e200, 1e308):
        frame = spectrum([scale, 0.0], [0.0, 0.0])
        counts = count_singular_values(frame, [0.0, scale / 2, scale, 1.7e308]).set_index(["matrix", "threshold"])
        assert counts.loc[("m0", scale), "ambiguous"]
        assert counts["ambiguous"].sum() == 1
        assert counts.xs(0.0, level="threshold")["below"].tolist() == [0, 0]
    assert not count_singular_values(spectrum([np.nan, 1.0]), 1.0)["ambiguous"].any()


def test_below_a_millionth_of_the_largest_a_low_rank_spectrum_is_ambiguous():
    sigma = singular_values(product(np.random.default_rng(0), 40, 30, 4))
    counts = count_singular_values(spectrum(sigma), sigma[0] * np.array([1e-9, 1e-8, 1e-6]))
    assert counts["ambiguous"].tolist() == [True, True, False]
    assert counts["above"].iloc[2] == 4


@given(positive)
def test_measures_are_as_defined_and_ordered(sigma):
    s = np.sort(sigma)[::-1]
    [row] = rank_measures(spectrum(sigma)).to_dict("records")
    p, energy = s / s.sum(), np.square(s) / np.square(s).sum()
    expected = {
        "numerical_rank": (s > np.finfo(np.float32).eps * 99 * s[0]).sum(),
        "stable_rank": (s**2).sum() / s[0] ** 2,
        "effective_rank": np.exp(-(p * np.log(p)).sum()),
        "participation_ratio": (s**2).sum() ** 2 / (s**4).sum(),
        "per": np.exp(-(p * np.log(p)).sum()) / len(s),
        "condition_number": s[0] / s[-1],
        "spectral_norm": s[0],
        "frobenius_norm": np.linalg.norm(s),
        "nuclear_norm": s.sum(),
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    for percent in (90, 99):
        least = row[f"energy_rank_{percent}"]
        assert energy[:least].sum() >= percent / 100 - 2e-12
        assert energy[: least - 1].sum() < percent / 100
    chain = ["stable_rank", "participation_ratio", "effective_rank"]
    ordered = [1, *(row[name] for name in chain), row["numerical_rank"]]
    assert all(low <= high * (1 + 1e-12) for low, high in pairwise(ordered))


@given(sigmas, st.sampled_from([1e-150, 1e150]))
def test_only_norms_know_the_scale(sigma, scale):
    sigma = [0.0 if value < 1e-100 else value for value in sigma]
    rows = [rank_measures(spectrum(np.multiply(sigma, t))).iloc[0, 5:].astype(float) for t in (1.0, scale)]
    rows[1][["spectral_norm", "frobenius_norm", "nuclear_norm"]] /= scale
    np.testing.assert_allclose(rows[1], rows[0], rtol=1e-10)


@given(st.integers(1, 200), st.floats(1e-3, 1e3), st.integers(0, 20))
def test_of_k_equal_values_all_ranks_are_k_and_nine_of_ten_hold_ninety_percent(k, value, zeros):
    [row] = rank_measures(spectrum([value] * k + [0.0] * zeros)).to_dict("records")
    for name in ("numerical_rank", "stable_rank", "effective_rank", "participation_ratio"):
        assert row[name] == pytest.approx(k, rel=1e-12)
    assert row["per"] == pytest.approx(k / (k + zeros))
    assert row["energy_rank_90"] == -(-9 * k // 10)
    assert row["energy_rank_99"] == -(-99 * k // 100)
    assert row["condition_number"] == (np.inf if zeros else 1)


@given(st.integers(1, 40), st.floats(1e-3, 1e3))
def test_a_share_of_exactly_ninety_percent_is_reached(k, value):
    """k values hold 9 parts of 10 and k more the rest, none of them a round number."""
    [row] = rank_measures(spectrum([3 * value / 7] * k + [value / 7] * k)).to_dict("records")
    assert row["energy_rank_90"] == k


def test_of_zeros_ranks_are_zero_and_of_nan_missing():
    found = rank_measures(spectrum([0.0] * 3, [np.nan, 1.0], [2.0, 1.0])).drop(columns=["matrix", "role"])
    assert found.iloc[0, 3:].drop("condition_number").eq(0).all()
    assert np.isnan(found["condition_number"][0])
    assert found.iloc[1, 3:].isna().all()
    assert found["numerical_rank"].tolist()[::2] == [0, 2]
    assert found["numerical_rank"].dtype == found["energy_rank_99"].dtype == "Int64"


def test_the_floor_of_a_matrix_and_a_run_can_be_given():
    frame = spectrum([1.0, 0.5, 0.1], [1.0, 0.5, 0.1])
    floors = pd.DataFrame({"matrix": ["m1", "m0"], "floor": [0.5, 0.0]})
    found = rank_measures(frame, floors)
    assert found["numerical_rank"].tolist() == [3, 1]
    assert found["condition_number"].tolist() == [10, np.inf]
    runs = pd.concat([frame.assign(run=run, label=pd.Categorical([run] * 6)) for run in "ab"])
    found = rank_measures(runs, pd.concat([floors.assign(run="a"), floors.assign(run="b", floor=0.9)]))
    assert found["numerical_rank"].tolist() == [3, 1, 1, 1]
    assert found[["run", "matrix"]].agg("".join, axis=1).tolist() == ["am0", "am1", "bm0", "bm1"]
    with pytest.raises(ValueError, match="floors has no m1"):
        rank_measures(frame, floors[1:])
    with pytest.raises(ValueError, match="floors has a matrix twice"):
        rank_measures(frame, pd.concat([floors, floors]))


def test_rounding_of_weights_is_no_part_of_the_floor_of_a_sum_of_products():
    frame = spectrum([1.0, 1e-3], [1.0, 1e-3])
    about = frame.drop_duplicates("matrix").assign(dtype="BF16", nonfinite=0)
    for rms in (1.0, np.nan):
        matrices = about.assign(source=["weights", "factors"], rms=[1.0, rms])
        ranks = numerical_ranks(SimpleNamespace(spectra=frame, matrices=matrices))
        assert ranks["rank"].tolist() == [1, 2]
        assert ranks["floor"].iloc[1] == np.finfo(np.float32).eps * 99


@pytest.mark.parametrize("names", [["q", "gate", "q"], ["all", "q", "all"], ["all", "all roles", "z"]])
def test_the_last_row_of_roles_is_all_matrices_whatever_a_role_is_called(names):
    frame = spectrum([1.0, 0.01], [2.0, 1.0], [3.0, 0.02])
    frame["role"] = [names[number] for number in frame["layer"]]
    matrices = frame.drop_duplicates("matrix").assign(dtype="F32", nonfinite=0, source="factors", rms=np.nan)
    table = by_role(SimpleNamespace(spectra=frame, matrices=matrices))
    assert table["role"].is_unique
    assert set(table["role"][:-1]) == set(names)
    for _, row in table.iterrows():
        mine = frame[frame["role"] == row["role"]] if row["role"] in names else frame
        assert row["matrices"] == mine["matrix"].nunique()
        assert row["largest σ"] == mine["sigma"].max()
        assert (row["< 0.1"], row["≥ 0.1"]) == ((mine["sigma"] < 0.1).sum(), (mine["sigma"] >= 0.1).sum())
    assert table["matrices"].tolist()[-1] == 3
    assert names[0] == "all" or table["role"].tolist()[-1] == "all"


@given(sigmas)
def test_a_histogram_counts_every_value_up_to_two(sigma):
    frame = histogram.histograms(spectrum(sigma).assign(label="x"))
    assert len(frame) == 50
    assert frame["count"].sum() == sum(value <= 2 for value in sigma)
    area = (frame["density"] * (frame["right"] - frame["left"])).sum()
    assert area == pytest.approx(frame["count"].sum() / len(sigma))
