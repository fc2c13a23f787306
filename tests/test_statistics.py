"""Means with errors, differences paired by seed, and the papers' printed numbers."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis import paper
from analysis.statistics import paired_difference, standard_error, summarise

numbers = st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=2, max_size=8)


def runs(**losses):
    """A row a run, as load_runs has them: losses of each label by seed."""
    rows = [
        {"label": label, "seed": seed, "loss": loss, "state": "finished", "step": 9}
        for label, found in losses.items()
        for seed, loss in enumerate(found)
    ]
    return pd.DataFrame(rows).astype({"label": pd.CategoricalDtype(list(losses), ordered=True)})


@given(numbers, st.integers(0, 10**6))
def test_the_interval_is_that_of_a_paired_t_test(a, seed):
    b = np.random.default_rng(seed).normal(size=len(a)).tolist()
    found = paired_difference(runs(a=a, b=b), "a", "b")
    expected = stats.ttest_rel(a, b).confidence_interval()
    assert found.mean == pytest.approx(np.mean(a) - np.mean(b), abs=1e-12)
    assert found.interval == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert found.n == len(a)
    assert found.signs == (
        sum(x < y for x, y in zip(a, b, strict=True)),
        sum(x > y for x, y in zip(a, b, strict=True)),
    )
    wide = pd.DataFrame({"a": a, "b": b})
    assert paired_difference(wide, "a", "b") == found
    back = paired_difference(wide, "b", "a")
    assert back.mean == -found.mean
    assert back.interval == pytest.approx((-found.interval[1], -found.interval[0]))


def test_seeds_without_a_partner_and_diverged_runs_are_left_out_and_one_seed_has_no_interval():
    frame = runs(a=[1.0, 2.0, 9.0], b=[2.0, 4.0])
    assert paired_difference(frame, "a", "b")[::2] == (-1.5, 2)
    frame.loc[(frame["label"] == "b") & (frame["seed"] == 0), "state"] = "diverged"
    found = paired_difference(frame, "a", "b")
    assert (found.mean, found.n, found.signs) == (-2.0, 1, (1, 0))
    assert all(map(math.isnan, found.interval))
    assert paired_difference(runs(a=[1.0], b=[None]), "a", "b").n == 0
    frame["state"] = "diverged"
    assert paired_difference(frame, "a", "b").n == 0
    with pytest.raises(ValueError, match="no run is labelled 'c'"):
        paired_difference(frame, "a", "c")
    with pytest.raises(ValueError, match="same label and seed"):
        paired_difference(pd.concat([frame, frame]), "a", "b")


@given(numbers)
def test_the_standard_error_is_scipys(values):
    assert standard_error(pd.Series(values)) == pytest.approx(stats.sem(values))


def test_a_summary_says_in_words_what_it_lacks():
    frame = runs(good=[1.0, 3.0], bad=[1.0, 50.0], alone=[4.0], waiting=[None, None])
    frame.loc[3, "state"] = "diverged"
    frame.loc[5:, "state"] = "running"
    told = summarise(frame, "loss").set_index("label")
    assert told.loc["good", ["n", "loss", "loss_error", "remark"]].tolist() == [2, 2.0, 1.0, ""]
    assert told.loc["bad", "loss"] == 1.0
    assert told.loc["bad", "remark"] == "diverged at step 9 (seed 1); one seed: no error"
    assert told.loc["alone", "remark"] == "seed 1 missing; one seed: no error"
    assert told.loc["waiting", "remark"] == "running at step 9 (seed 0, 1)"
    assert math.isnan(told.loc["waiting", "loss"])


def test_the_papers_numbers_are_as_printed():
    table2 = paper.table("P1", "Table 2")
    assert table2.loc["relora"].tolist() == ["34.46", "25.04", "22.48", "19.32", "17.27"]
    assert table2.loc["control", "130M"] == "27.30"
    assert paper.table("P1", "Table 6").loc["restarts + reset", "perplexity"] == "diverged"
    frame = paper.numbers()
    assert not frame.duplicated(["paper", "table", "row", "column"]).any()
    assert set(frame["kind"]) <= {"printed", "public notebook"}


def test_the_counts_of_figure_12_are_there():
    """Guitaricet/relora, notebooks/09_bar_plot.ipynb; lora is 12·(768 − 128) a projection."""
    counts = paper.table("P1", "Figure 12").astype(int)
    assert counts.loc["full"].to_dict() == {"q": 1173, "k": 1203, "v": 2641, "up": 0, "down": 0}
    assert counts.loc["relora"].to_dict() == {"q": 5693, "k": 5723, "v": 6050, "up": 4884, "down": 4942}
    assert counts.loc["lora"].to_dict() == {"q": 7680, "k": 7680, "v": 7681, "up": 7680, "down": 7680}
    with pytest.raises(KeyError):
        paper.table("P1", "Table 99")
