"""Overlap of successive cycles' updates: that of the sums of their factor pairs, and what chance would give."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import changed, tiny_tables
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.cycles import cycle_overlaps
from analysis.subspaces import principal_angles
from relora_lab.runs import RunFolder

NAME, WIDE = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"  # 16×16 and 16×40 in the tiny model
seeds = st.integers(0, 10**6)


def update(random, rows, cols, rank, scale=1.0):
    """A factor pair in float32, as a cycle has it."""
    B, A = (torch.tensor(random.standard_normal(shape)).float() for shape in ((rows, rank), (rank, cols)))
    return B, A, scale


def dense(pairs):
    """The sum of products."""
    return sum(s * B.double() @ A.double() for B, A, s in pairs).numpy()


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes a run folder of cycles, each the pairs of NAME or pairs by matrix; all but the last merge."""

    def made(*cycles, merged=None, **tables):
        folder = RunFolder(tmp_path_factory.mktemp("runs") / "run")
        folder.make()
        folder.write_config(changed(tiny_tables(), **tables))
        for number, pairs in enumerate(cycles, 1):
            at_end = number < len(cycles) if merged is None else merged[number - 1]
            facts = {"cycle": number, "end": 20 + 5 * number, "merged": at_end}
            folder.write_cycle(number, pairs if isinstance(pairs, dict) else {NAME: pairs}, facts)
        return folder.path

    return made


@settings(max_examples=15)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=4), st.booleans(), seeds)
def test_overlaps_are_those_of_the_summed_updates(make, ranks, signed, seed):
    random = np.random.default_rng(seed)
    cycles = [
        [update(random, 16, 40, rank, 0.5), *([update(random, 16, 40, rank, -0.5)] if signed else [])]
        for rank in ranks
    ]
    frame = cycle_overlaps(make(*({WIDE: pairs} for pairs in cycles)))
    assert frame["cycle"].tolist() == [n for n in range(1, len(ranks)) for _ in range(2)]
    assert (frame["next_cycle"] == frame["cycle"] + 1).all()
    assert frame["side"].tolist() == ["out", "in"] * (len(ranks) - 1)
    for row in frame.itertuples():
        assert (row.matrix, row.layer, row.role, row.rows, row.cols) == (WIDE, 1, "down", 16, 40)
        earlier, later = (dense(cycles[n - 1]) for n in (row.cycle, row.next_cycle))
        if row.side == "in":
            earlier, later = earlier.T, later.T
        ranks_here = np.linalg.matrix_rank(earlier), np.linalg.matrix_rank(later)
        assert (row.rank, row.next_rank) == ranks_here
        cosines = np.cos(principal_angles(earlier, later))
        Q = np.linalg.svd(earlier)[0][:, : row.rank]
        expected = {
            "largest_cosine": cosines[0],
            "overlap": (cosines**2).mean(),
            "chance": max(ranks_here) / len(earlier),
            "energy": np.linalg.norm(Q.T @ later) ** 2 / np.linalg.norm(later) ** 2,
            "energy_chance": ranks_here[0] / len(earlier),
        }
        assert {name: getattr(row, name) for name in expected} == pytest.approx(expected, abs=1e-9)


def test_random_updates_overlap_by_chance(make):
    random = np.random.default_rng(0)
    frame = cycle_overlaps(make(*({WIDE: [update(random, 16, 40, 2 + n % 2)]} for n in range(200))))
    for _, side in frame.groupby("side"):
        assert side["overlap"].mean() == pytest.approx(side["chance"].mean(), rel=0.08)
        assert side["energy"].mean() == pytest.approx(side["energy_chance"].mean(), rel=0.08)
        assert side["largest_cosine"].max() < 1


def test_an_update_into_the_same_subspace_and_one_into_another_are_told_apart(make):
    U, V = (torch.linalg.qr(torch.randn(16, 8, generator=torch.Generator().manual_seed(n)))[0] for n in (0, 1))
    first = (U[:, :4], V.T[:4], 1.0)
    inside = (U[:, :2] * torch.tensor([1.0, 5.0]), V.T[4:6], 1.0)
    frame = cycle_overlaps(make([first], [inside])).set_index("side")
    assert frame.loc["out", ["largest_cosine", "overlap", "energy"]].tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    assert frame.loc["in", ["largest_cosine", "overlap", "energy"]].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert frame.loc["out", ["rank", "next_rank", "chance", "energy_chance"]].tolist() == [4, 2, 0.25, 0.25]
    # Half inside, by dimension; 9 parts of 10, by energy.
    half = (torch.stack([3 * U[:, 0], U[:, 7]], dim=1), V.T[:2], 1.0)
    out = cycle_overlaps(make([first], [half])).set_index("side").loc["out"]
    assert (out["overlap"], out["energy"]) == pytest.approx((0.5, 0.9), abs=1e-6)


def test_factors_that_go_on_unmerged_are_one_update(make):
    """Else B of the next cycle's −B·A would be found in the subspace that it is."""
    random = np.random.default_rng(0)
    began, reset, ended, fresh = (update(random, 16, 16, 2) for _ in range(4))

    def minus(pair):
        return (*pair[:2], -pair[2])

    cycles = [[reset, minus(began)], [ended, minus(reset)], [fresh]]
    frame = cycle_overlaps(make(*cycles, merged=[False, True, False]))
    assert frame[["cycle", "next_cycle", "rank", "next_rank"]].to_numpy().tolist() == [[2, 3, 4, 2]] * 2
    as_one = cycle_overlaps(make([ended, minus(began)], [fresh]))
    pd.testing.assert_frame_equal(frame.iloc[:, 7:], as_one.iloc[:, 7:])
    assert cycle_overlaps(make(*cycles[:2], merged=[False, False])).empty


def test_an_update_of_zero_and_one_that_is_not_finite_have_no_overlap(make):
    B, A, _ = update(np.random.default_rng(0), 16, 16, 2)
    nothing = [(B, A, 1.0), (B.clone(), A.clone(), -1.0)]  # RePiSSA's, before any training
    frame = cycle_overlaps(make([(B, A, 1.0)], nothing, [(B, A, 1.0)]))
    assert frame["rank"].tolist() == [2, 2, 0, 0]
    assert frame["next_rank"].tolist() == [0, 0, 2, 2]
    assert frame[["largest_cosine", "overlap", "chance"]].isna().all().all()
    assert frame["energy"].isna().tolist() == [True, True, False, False]
    assert frame["energy"].tolist()[2:] == frame["energy_chance"].tolist()[2:] == [0, 0]
    frame = cycle_overlaps(make([(B, A, 1.0)], [(B * float("inf"), A, 1.0)]))
    assert frame.loc[:, "rank":].isna().all().all()


def test_cycles_before_the_reference_do_not_count_and_without_two_there_is_no_row(make):
    random = np.random.default_rng(0)
    cycles = [[update(random, 16, 16, 2)] for _ in range(3)]
    assert cycle_overlaps(make(*cycles))["cycle"].tolist() == [1, 1, 2, 2]
    late = cycle_overlaps(make(*cycles, training={"reference_step": 25}))
    assert late["cycle"].tolist() == [2, 2]
    for empty in (make(cycles[0]), make(method={"name": "full"}, training={"warm_start": 0})):
        frame = cycle_overlaps(empty)
        assert frame.empty
        assert list(frame.columns) == list(late.columns)
        assert frame["rank"].dtype == "Int64"
