"""Means with errors, differences paired by seed, and several comparisons."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis import tables
from analysis.load import require_comparable
from analysis.statistics import contrast, holm, paired_difference, standard_error, summarise
from analysis.tables import ablation
from relora_lab.errors import BadInput

numbers = st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=2, max_size=8)
p_values = st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.02, 1.0, math.nan])), max_size=12)
TEXT = {"corpus": "ab" * 32, "data.tokenizer": "bytes", "data.vocab_size": None}
SEEN = {"data.sequence_length": 32, "data.batch_size": 4, "training.steps": 60, "training.eval_tokens": 512}


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
    assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-6)
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


@given(st.integers(2, 6), st.integers(0, 10**6))
def test_a_contrast_of_two_rows_is_their_difference_and_one_of_four_a_difference_of_differences(n, seed):
    a, b, c, d = (column.tolist() for column in np.random.default_rng(seed).normal(size=(4, n)))
    frame = runs(a=a, b=b, c=c, d=d)
    assert contrast(frame, {"a": 1, "b": -1}) == paired_difference(frame, "a", "b")
    found = contrast(frame, {"a": 1, "b": -1, "c": -1, "d": 1})
    gains = pd.DataFrame({"first": np.subtract(a, b), "second": np.subtract(c, d)})
    expected = paired_difference(gains, "first", "second")
    assert found.mean == pytest.approx(expected.mean, abs=1e-12)
    assert found.interval == pytest.approx(expected.interval)
    assert contrast(frame, {"a": 0.5, "b": -0.5}).mean == pytest.approx(paired_difference(frame, "a", "b").mean / 2)


def test_a_contrast_needs_every_row_in_a_seed():
    frame = runs(a=[1.0, 2.0, 3.0], b=[0.0, 0.0, 0.0], c=[1.0, 1.0])
    assert contrast(frame, {"a": 1, "b": 1, "c": -1}).n == 2
    assert contrast(frame, {"a": 1}).mean == 2.0
    with pytest.raises(ValueError, match="no run is labelled 'd'"):
        contrast(frame, {"a": 1, "d": -1})


def test_seeds_without_a_partner_and_diverged_runs_are_left_out_and_one_seed_has_no_interval():
    frame = runs(a=[1.0, 2.0, 9.0], b=[2.0, 4.0])
    found = paired_difference(frame, "a", "b")
    assert (found.mean, found.n) == (-1.5, 2)
    frame.loc[(frame["label"] == "b") & (frame["seed"] == 0), "state"] = "diverged"
    found = paired_difference(frame, "a", "b")
    assert (found.mean, found.n, found.signs) == (-2.0, 1, (1, 0))
    assert all(map(math.isnan, (*found.interval, *found.bootstrap, found.p)))
    assert paired_difference(runs(a=[1.0], b=[None]), "a", "b").n == 0
    frame["state"] = "diverged"
    assert paired_difference(frame, "a", "b").n == 0
    with pytest.raises(ValueError, match="no run is labelled 'c'"):
        paired_difference(frame, "a", "c")
    with pytest.raises(ValueError, match="same label and seed"):
        paired_difference(pd.concat([frame, frame]), "a", "b")


@given(numbers, st.integers(0, 10**6))
def test_the_bootstrap_is_scipys_the_same_each_time_and_changes_sign_with_the_difference(a, seed):
    b = np.random.default_rng(seed).normal(size=len(a)).tolist()
    state = np.random.get_state()[1].tolist()
    found = paired_difference(runs(a=a, b=b), "a", "b")
    low, high = found.bootstrap
    assert found == paired_difference(runs(a=a, b=b), "a", "b")
    assert np.random.get_state()[1].tolist() == state
    expected = stats.bootstrap((np.subtract(a, b),), np.mean, method="percentile", random_state=9).confidence_interval
    spread = np.ptp(np.subtract(a, b))
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.1 * spread)  # of other resamples
    assert low - 1e-9 <= found.mean <= high + 1e-9
    assert paired_difference(runs(a=a, b=b), "b", "a").bootstrap == pytest.approx((-high, -low), abs=1e-9)
    if len(a) <= 3:
        assert (low, high) == pytest.approx((np.subtract(a, b).min(), np.subtract(a, b).max()), abs=1e-9)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("by", [0.0, 0.1, -0.3])
def test_equal_differences_are_an_interval_of_one_value_without_a_p(by):
    """1.1 − 1 and 2.1 − 2 differ by rounding; a t test of them would say p = 1e-15."""
    found = paired_difference(runs(a=[1 + by, 2 + by, 3 + by], b=[1.0, 2.0, 3.0]), "a", "b")
    assert (found.mean, *found.interval) == pytest.approx((by, by, by))
    assert found.bootstrap == (found.mean, found.mean)
    assert math.isnan(found.p)


def test_holm_of_an_example_by_hand():
    """0.01·4, then 0.02·3 = 0.06, then 0.03·2 = 0.06, then 0.4; 0.005 is the smallest of the second family of 3."""
    assert holm([0.03, 0.01, 0.4, 0.02]) == pytest.approx([0.06, 0.04, 0.4, 0.06])
    assert holm([0.005, math.nan, 0.9, 0.6]) == pytest.approx([0.015, math.nan, 1, 1], nan_ok=True)
    assert holm([0.03, 0.02]) == pytest.approx([0.04, 0.04])  # 0.03·1 is less than the one below it became
    assert (holm([]), holm([0.2])) == ([], [0.2])
    with pytest.raises(ValueError, match=r"lies in \[0, 1\]"):
        holm([0.5, 1.5])


@given(p_values)
def test_holm_is_its_definition(given_p):
    """Adjusted p: the least level at which step-down rejects: the largest (m − j + 1)·p₍ⱼ₎ up to its own place."""
    adjusted = dict(enumerate(holm(given_p)))
    family = {place: p for place, p in enumerate(given_p) if not math.isnan(p)}
    assert [place for place, p in adjusted.items() if math.isnan(p)] == sorted(set(adjusted) - set(family))
    for place, p in family.items():
        below = [other for other in family.values() if other <= p]
        tests = [sum(one >= other for one in family.values()) * other for other in below]
        assert adjusted[place] == pytest.approx(min(1, max(tests)))
        assert p <= adjusted[place] <= min(1, len(family) * p)
        assert all(adjusted[place] <= adjusted[other] for other, q in family.items() if p <= q)


def grid(**losses):
    """As `runs`, with what a table of methods asks for: relora has all ingredients, others a warm start alone."""
    frame = runs(**losses)
    names = frame["label"].astype(str)
    on = names.eq("relora")
    frame = frame.assign(method=names, size="demo", control=False, parameters=100, trained=10, warm_start=True)
    frame = frame.assign(restarts=on, reset=on, jagged=on, perplexity=np.exp(frame["loss"].astype(float)))
    return frame.assign(run=names + "-seed" + frame["seed"].astype(str), path=frame.index.astype(str), **TEXT, **SEEN)


def test_tables_adjust_for_the_comparisons_that_they_make_and_say_how_many():
    frame = grid(relora=[2.0, 2.1, 2.2], lora=[2.1, 2.21, 2.29], full=[1.9, 2.02, 2.1], galore=[2.0, 2.2, 2.0])
    frame.loc[frame["label"] == "full", "parameters"] = 50  # another size is not compared
    for name, labels in {"ablation": ["lora"], "methods": ["lora", "galore"]}.items():
        module = tables.load(name)
        table = module.table(frame).set_index("label")
        found = [paired_difference(frame, label, "relora") for label in labels]
        compared = table.loc[labels]
        assert table["p"].dropna().index.tolist() == labels
        assert compared["p"].tolist() == [one.p for one in found]
        assert compared["p (Holm)"].tolist() == holm([one.p for one in found])
        assert compared[["bootstrap_low", "bootstrap_high"]].to_numpy().tolist() == [
            [*one.bootstrap] for one in found
        ]
        several = {1: "the 1 comparison of", 2: "the 2 comparisons of"}[len(labels)]
        assert several in module.note(module.table(frame))
        shown = tables.shown(module.table(frame))
        assert {"interval", "bootstrap", "p", "p (Holm)"} <= set(shown)
        assert len(shown.columns) <= 16
    alone = frame[frame["seed"] == 0]
    assert not {"interval", "bootstrap", "p", "p (Holm)"} & set(tables.shown(ablation.table(alone)))
    assert ablation.note(ablation.table(alone)) == ablation.NOTE


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("corpus", "cd" * 32, r"corpus abababab \(relora-seed0\) vs cdcdcdcd \(galore-seed1\)"),
        ("training.steps", 70, r"tokens 7680 \(relora-seed0\) vs 8960 \(galore-seed1\)"),
        ("data.sequence_length", 64, "sequence length 32 .* vs 64"),
        ("data.batch_size", 8, "tokens 7680 .* vs 15360"),
        ("training.eval_tokens", 1024, "evaluation tokens 512 .* vs 1024"),
        ("data.tokenizer", "bpe", r"tokenizer bytes \(relora-seed0\) vs bpe \(galore-seed1\)"),
    ],
)
def test_what_was_not_trained_and_evaluated_alike_is_refused_everywhere(column, value, told):
    frame = grid(relora=[2.0, 2.1], lora=[2.1, 2.2], galore=[2.2, 2.3])
    if column == "data.tokenizer":
        frame.loc[5, "corpus"] = "ef" * 32  # tokens of another tokenizer are others
    frame[column] = frame[column].mask(frame.index == 5, value)
    modules = [module for module in tables.available() if module is not ablation]
    made = [lambda: summarise(frame, "loss"), lambda: paired_difference(frame, "galore", "relora")]
    for make in (*made, *(lambda module=module: module.table(frame) for module in modules)):
        with pytest.raises(BadInput, match=f"rows are not comparable: {told}"):
            make()
    assert len(ablation.table(frame)) == 2  # of P1's methods, among which galore is not
    assert paired_difference(frame, "lora", "relora").n == 2  # the others do not matter


def test_another_size_a_run_that_has_not_begun_and_frames_without_settings_are_comparable():
    frame = grid(relora=[2.0, 2.1], lora=[2.1, 2.2])
    frame.loc[frame["label"] == "lora", ["size", "parameters"]] = ["control:demo", 50]
    frame.loc[3, "corpus"] = None
    require_comparable(frame)
    summarise(frame, "loss")
    frame.loc[3, "corpus"], frame.loc[3, "data.tokenizer"] = frame.loc[0, "corpus"], "copies/of-the-same"
    require_comparable(frame)  # the hash is of the tokens
    require_comparable(runs(a=[1.0], b=[2.0]))
    with pytest.raises(BadInput, match=r"steps 60 \(a, seed 0\) vs 70 \(b, seed 0\)"):
        require_comparable(runs(a=[1.0], b=[2.0]).assign(**{"training.steps": [60, 70]}))
    with pytest.raises(BadInput, match="0 and 0 are the same configuration"):
        paired_difference(pd.concat([frame, frame]), "lora", "relora")


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
