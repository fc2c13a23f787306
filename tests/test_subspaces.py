"""Angles between subspaces, and what they say of two runs, of W and ΔW: against planted directions."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis.subspaces import (
    alignment,
    delta_overlaps,
    intruder_dimensions,
    principal_angles,
    singular_vectors,
)

seeds = st.integers(0, 10**6)


@dataclass(frozen=True)
class Ends:
    """A matrix of two checkpoints, in memory."""

    start: np.ndarray
    final: np.ndarray
    name: str = "model.layers.2.self_attn.q_proj"
    layer: int = 2
    role: str = "q"

    @property
    def rows(self):
        return self.start.shape[0]

    @property
    def cols(self):
        return self.start.shape[1]

    def ends(self):
        return torch.tensor(self.start), torch.tensor(self.final)

    def delta(self):
        return torch.tensor(self.final) - torch.tensor(self.start)


def gaussian(seed, *shape):
    """iid entries."""
    return np.random.default_rng(seed).standard_normal(shape)


def directions(seed, n, k):
    """k orthonormal columns."""
    return np.linalg.qr(gaussian(seed, n, k))[0]


# ---- angles


@given(st.integers(1, 12), st.integers(0, 20), seeds, st.data())
def test_angles_are_those_that_were_planted_however_small(k, more, seed, data):
    near = st.floats(-16, 0).map(lambda exponent: 10.0**exponent)
    angle = st.one_of(st.just(0.0), near, near.map(lambda x: np.pi / 2 - x), st.floats(0, np.pi / 2))
    angles = np.sort(data.draw(st.lists(angle, min_size=k, max_size=k)))
    Q = directions(seed, 2 * k + more, 2 * k)
    X, Y = Q[:, :k], Q[:, :k] * np.cos(angles) + Q[:, k:] * np.sin(angles)
    np.testing.assert_allclose(principal_angles(X, Y), angles, rtol=0, atol=1e-14)


@given(st.integers(1, 20), st.integers(1, 8), st.integers(1, 8), seeds)
def test_angles_belong_to_subspaces_and_not_to_their_bases(n, p, q, seed):
    random = np.random.default_rng(seed)
    X, Y = random.standard_normal((n, p)), random.standard_normal((n, q))
    angles = principal_angles(X, Y)
    assert len(angles) == min(n, p, q)
    assert np.all(np.diff(angles) >= 0)
    assert angles[0] >= 0
    assert angles[-1] <= np.pi / 2
    turned = directions(seed, n, n)
    mixed = directions(seed + 1, p, p) * random.uniform(0.5, 2, p)
    # A wide Gaussian matrix can be as ill-conditioned as it likes, and loses that many digits.
    close = 1e-14 * (np.linalg.cond(X) + np.linalg.cond(Y))
    for A, B in ((Y, X), (X @ mixed, Y), (turned @ X, turned @ Y), (1e200 * X, 1e-200 * Y)):
        np.testing.assert_allclose(principal_angles(A, B), angles, rtol=0, atol=close)
    assert principal_angles(X, X @ mixed)[-1] <= close


def test_directions_below_rounding_are_none_and_orthogonal_spaces_are_at_right_angles():
    X = gaussian(0, 30, 4)
    deficient = X @ gaussian(1, 4, 9)
    assert principal_angles(deficient, X).shape == (4,)
    np.testing.assert_allclose(principal_angles(deficient, X), 0, atol=1e-13)
    single = torch.tensor(X, dtype=torch.float32) @ torch.tensor(gaussian(1, 4, 9), dtype=torch.float32)
    assert principal_angles(single, gaussian(2, 30, 9)).shape == (4,)
    np.testing.assert_allclose(principal_angles(single, X), 0, atol=1e-5)
    assert principal_angles(np.zeros((5, 2)), np.eye(5)).shape == (0,)
    assert principal_angles(np.eye(6)[:, :2], np.eye(6)[:, 2:]).tolist() == [np.pi / 2] * 2
    integers = torch.eye(3, dtype=torch.int64)
    assert principal_angles([[1, 0], [0, 1], [0, 0]], integers[:, 1:]).tolist() == [0, np.pi / 2]
    line, plane = np.array([[3.0], [4.0], [0.0]]), np.eye(3)[:, :2]
    assert principal_angles(line, plane) == pytest.approx([0], abs=1e-15)
    assert principal_angles(line, plane[:, :1]) == pytest.approx([np.arccos(0.6)])


def test_what_has_no_angles_is_refused():
    good = np.ones((3, 2))
    for bad in (np.ones(3), np.ones((3, 2, 1)), np.ones((0, 2)), np.ones((3, 0))):
        with pytest.raises(ValueError, match="a column space needs a matrix"):
            principal_angles(good, bad)
    for bad in (np.array([[np.nan, 1]]), torch.tensor([[np.inf]])):
        with pytest.raises(ValueError, match="non-finite"):
            principal_angles(bad, good)
    with pytest.raises(ValueError, match="complex"):
        principal_angles(good * 1j, good)
    with pytest.raises(ValueError, match="of 3 and of 4 dimensions"):
        principal_angles(good, np.ones((4, 2)))


# ---- singular vectors


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 35), seeds, st.sampled_from([1e-200, 1.0, 1e150]))
def test_singular_vectors_are_orthonormal_and_rebuild_what_they_belong_to(rows, cols, top, seed, scale):
    W = scale * gaussian(seed, rows, cols)
    U, sigma, V = singular_vectors(torch.tensor(W), top)
    expected = np.linalg.svd(W, compute_uv=False)
    k = len(sigma)
    assert k == min(top, (expected > 1e-6 * expected[0]).sum())
    assert np.all(np.diff(sigma) <= 0)
    np.testing.assert_allclose(sigma, expected[:k], rtol=1e-3, atol=1e-13 * expected[0])
    for basis, side in ((U, rows), (V, cols)):
        assert basis.shape == (side, k)
        np.testing.assert_allclose(basis.T @ basis, np.eye(k), atol=1e-13)
    np.testing.assert_allclose((U.T @ (W / scale) @ V), np.diag(sigma / scale), atol=1e-12 * expected[0] / scale)


@given(st.integers(2, 25), st.integers(2, 25), st.integers(1, 6), seeds)
def test_leading_subspaces_are_those_of_an_svd(rows, cols, rank, seed):
    rank = min(rank, rows, cols)
    planted = np.geomspace(1, 0.01, rank)
    W = (directions(seed, rows, rank) * planted) @ directions(seed + 1, cols, rank).T
    U, sigma, V = singular_vectors(torch.tensor(W), 30)
    np.testing.assert_allclose(sigma, planted, rtol=1e-11)
    assert principal_angles(U, directions(seed, rows, rank))[-1] < 1e-10
    assert principal_angles(V, directions(seed + 1, cols, rank))[-1] < 1e-10
    U, _, V = singular_vectors(torch.tensor(W), 1)
    assert principal_angles(U, directions(seed, rows, rank)[:, :1])[-1] < 1e-10
    assert principal_angles(V, directions(seed + 1, cols, rank)[:, :1])[-1] < 1e-10


def test_equal_singular_values_come_in_order_too():
    for n in range(2, 30):
        U, sigma, V = singular_vectors(torch.tensor(directions(n, n, n)), n)
        assert np.all(np.diff(sigma) <= 0)
        np.testing.assert_allclose(U @ V.T, directions(n, n, n), atol=1e-13)


def test_a_zero_matrix_has_none_and_what_is_no_matrix_is_refused():
    U, sigma, V = singular_vectors(torch.zeros(4, 6), 3)
    assert (U.shape, sigma.shape, V.shape) == ((4, 0), (0,), (6, 0))
    with pytest.raises(ValueError, match="need a matrix"):
        singular_vectors(torch.ones(4), 1)
    with pytest.raises(ValueError, match="top must be ≥ 1"):
        singular_vectors(torch.ones(4, 2), 0)
    with pytest.raises(ValueError, match="non-finite"):
        singular_vectors(torch.tensor([[float("nan"), 1.0]]), 1)


# ---- two runs


def test_equal_updates_overlap_wholly_and_others_by_chance():
    start = gaussian(0, 24, 60)
    firsts = [Ends(start, start + gaussian(n, 24, 60), f"m{n}") for n in range(1, 60)]
    others = [Ends(-start, gaussian(n, 24, 60) - start, f"m{n}") for n in range(59, 0, -1)]
    same = delta_overlaps(firsts, others, top=4)
    assert same["matrix"].tolist() == [f"m{n}" for n in range(1, 60) for _ in range(2)]
    assert same[["largest_cosine", "overlap"]].to_numpy() == pytest.approx(1, abs=1e-9)
    others = [Ends(start, start + gaussian(99 + n, 24, 60), f"m{n}") for n in range(1, 60)]
    found = delta_overlaps(firsts, others, top=4)
    for side, n in (("out", 24), ("in", 60)):
        group = found[found["side"] == side]
        assert group["chance"].unique().tolist() == [4 / n]
        assert group["overlap"].mean() == pytest.approx(4 / n, rel=0.1)


def test_fewer_directions_than_asked_are_compared_where_there_are_no_more():
    U, V, start = directions(0, 8, 8), directions(1, 10, 8), gaussian(2, 8, 10)
    one = Ends(start, start + U[:, :2] @ V[:, :2].T)
    other = Ends(start, start + U[:, 1:6] @ V[:, 2:7].T)
    frame = delta_overlaps([one], [other], top=16).set_index("side")
    assert frame["rank"].tolist() == [2, 2]
    assert frame["other_rank"].tolist() == [5, 5]
    assert frame["overlap"].tolist() == pytest.approx([0.5, 0], abs=1e-12)
    assert frame["largest_cosine"].tolist() == pytest.approx([1, 0], abs=1e-9)
    assert frame["chance"].tolist() == [5 / 8, 5 / 10]
    unchanged = delta_overlaps([Ends(start, start)], [other])
    assert unchanged["rank"].tolist() == [0, 0]
    assert unchanged[["largest_cosine", "overlap", "chance"]].isna().all().all()
    broken = delta_overlaps([Ends(start, start * np.nan)], [other])
    assert broken["matrix"].tolist() == [one.name] * 2
    assert broken.loc[:, "rank":].isna().all().all()


def test_comparisons_of_other_matrices_or_shapes_are_refused():
    square, wide = Ends(np.eye(3), np.eye(3)), Ends(np.ones((3, 4)), np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"q_proj is \(3, 3\) in one comparison and \(3, 4\) in the other"):
        delta_overlaps([square], [wide])
    with pytest.raises(ValueError, match="q_proj is in one of the comparisons only"):
        delta_overlaps([square], [])


# ---- W and ΔW


@given(st.integers(2, 20), st.integers(2, 20), st.integers(1, 25), seeds, st.sampled_from([1e-180, 1.0, 1e180]))
def test_alignment_is_the_energy_in_the_leading_directions_of_the_start(rows, cols, top, seed, scale):
    start, delta = gaussian(seed, rows, cols), gaussian(seed + 1, rows, cols)
    [row] = alignment([Ends(scale * start, scale * (start + delta))], top).to_dict("records")
    U, _, Vt = np.linalg.svd(start, full_matrices=False)
    k = min(top, rows, cols)
    assert row["rank"] == k
    U, V, total = U[:, :k], Vt[:k].T, np.linalg.norm(delta) ** 2
    expected = {
        "out_energy": np.linalg.norm(U.T @ delta) ** 2 / total,
        "in_energy": np.linalg.norm(delta @ V) ** 2 / total,
        "both_energy": np.linalg.norm(U.T @ delta @ V) ** 2 / total,
        "out_chance": k / rows,
        "in_chance": k / cols,
        "both_chance": k * k / (rows * cols),
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert row["both_energy"] <= min(row["out_energy"], row["in_energy"]) * (1 + 1e-12)


def test_an_update_along_the_start_is_aligned_and_a_random_one_is_so_by_chance():
    U, V = directions(0, 12, 12), directions(1, 30, 12)
    start = (U * np.arange(12, 0, -1)) @ V.T
    along = Ends(start, start + U[:, :3] @ V[:, :3].T)
    across = Ends(start, start + U[:, :3] @ V[:, 5:8].T)
    found = alignment([along, across], top=3)[["out_energy", "in_energy", "both_energy"]].to_numpy()
    np.testing.assert_allclose(found, [[1, 1, 1], [1, 0, 0]], atol=1e-12)
    many = alignment([Ends(start, start + gaussian(n, 12, 30)) for n in range(100)], top=3)
    for side in ("out", "in", "both"):
        assert many[f"{side}_energy"].mean() == pytest.approx(many[f"{side}_chance"].mean(), rel=0.1)


def test_without_an_update_or_with_nan_there_is_no_alignment():
    W = gaussian(0, 4, 5)
    frame = alignment([Ends(W, W), Ends(W, W * np.nan), Ends(W * np.inf, W), Ends(W * 0, W)], top=2)
    energies = frame[["out_energy", "in_energy", "both_energy"]]
    assert energies.isna().all(axis=1).tolist() == [True, True, True, False]
    assert energies.iloc[3].tolist() == [0, 0, 0]
    assert frame["rank"].fillna(-1).tolist() == [2, -1, -1, 0]


@given(st.integers(2, 20), st.integers(2, 20), st.integers(1, 12), st.floats(0.1, 1), seeds)
def test_intruders_are_those_of_two_svds(rows, cols, top, epsilon, seed):
    start = gaussian(seed, rows, cols)
    final = start + gaussian(seed + 1, rows, 1) @ gaussian(seed + 2, 1, cols)
    [row] = intruder_dimensions([Ends(start, final)], top, epsilon).to_dict("records")
    left, new = (np.linalg.svd(W, full_matrices=False)[0] for W in (start, final))
    most = np.abs(left.T @ new[:, :top]).max(axis=0)
    assert row["rank"] == len(most)
    assert row["least_similar"] == pytest.approx(most.min(), abs=1e-6)
    assert (most < epsilon - 1e-6).sum() <= row["intruders"] <= (most < epsilon + 1e-6).sum()


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
def test_a_new_large_direction_is_an_intruder_and_what_was_there_is_none(shape):
    U, V = directions(0, shape[0], 12), directions(1, shape[1], 12)
    start = (U[:, :10] * np.arange(10, 0, -1)) @ V[:, :10].T
    frame = intruder_dimensions(
        [
            Ends(start, start),
            Ends(start, 3 * start),
            Ends(start, start + 20 * U[:, 10:] @ V[:, 10:].T),
            Ends(np.zeros(shape), start),
            Ends(start, np.zeros(shape)),
            Ends(start, start * np.nan),
        ],
        top=5,
    )
    assert frame["intruders"].tolist() == [0, 0, 2, 5, 0, pd.NA]
    np.testing.assert_allclose(frame["least_similar"], [1, 1, 0, 0, np.nan, np.nan], atol=1e-9)
    assert frame["rank"].tolist() == [5, 5, 5, 5, 0, pd.NA]
    for bad in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="epsilon must be in"):
            intruder_dimensions([], epsilon=bad)
