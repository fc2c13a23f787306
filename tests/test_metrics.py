"""Metrics: those of scikit-learn and scipy, and what a prediction that is no label counts as."""

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference

from relora_lab.metrics import scores

LABELS = np.array([1, 0, 1, 1, 0, 0, 1, 0, 1, 1], np.float32)
PREDICTIONS = np.array([1, 0, 0, 1, 1, 0, 1, 0, 1, 0.0])  # 4 of 6 and 3 of 4 right
CLASSES = ("accuracy", "f1", "matthews")
NUMBERS = ("pearson", "spearman")


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_fixed_predictions_by_hand():
    found = scores(CLASSES, PREDICTIONS, LABELS)
    assert list(found) == list(CLASSES)
    assert found["accuracy"] == 0.7
    assert found["f1"] == pytest.approx(2 * 4 / (2 * 4 + 1 + 2))
    assert found["matthews"] == pytest.approx((4 * 3 - 1 * 2) / math.sqrt(5 * 6 * 4 * 5))
    assert scores(["pearson"], np.array([1, 2, 4.0]), np.array([1, 3, 4.0])) == {
        "pearson": pytest.approx(13 / math.sqrt(14 * 14))
    }
    assert scores(["spearman"], np.array([1, 20, 3.0]), np.array([0, 1, 2.0])) == {"spearman": pytest.approx(0.5)}


@given(rows=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30))
def test_classes_are_scored_as_by_scikit_learn(rows):
    predictions, labels = (np.array(column) for column in zip(*rows, strict=True))
    found = scores(CLASSES, predictions.astype(float), labels.astype(np.float32))
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, predictions))
    assert found["f1"] == pytest.approx(reference.f1_score(labels, predictions, zero_division=0))
    varies = len(set(labels)) == len(set(predictions)) == 2
    expected = reference.matthews_corrcoef(labels, predictions) if varies else 0
    assert found["matthews"] == pytest.approx(expected)


@given(rows=st.lists(st.tuples(*[st.integers(0, 25)] * 2), min_size=2, max_size=30, unique_by=(lambda r: r[0],)))
def test_numbers_are_scored_as_by_scipy(rows):
    predictions, labels = (np.array(column) / 5 for column in zip(*rows, strict=True))
    found = scores(NUMBERS, predictions, labels)
    if len(set(labels)) == 1:
        assert all(map(math.isnan, found.values()))
    else:
        assert found["pearson"] == pytest.approx(stats.pearsonr(predictions, labels).statistic)
        assert found["spearman"] == pytest.approx(stats.spearmanr(predictions, labels).statistic)


@given(
    labels=st.lists(st.integers(0, 1), min_size=2, max_size=20),
    said=st.lists(st.sampled_from([0, 1, -1, math.nan]), min_size=20, max_size=20),
)
def test_no_label_is_the_wrong_one_of_two(labels, said):
    labels, predictions = np.array(labels), np.array(said[: len(labels)])
    wrong = np.where(np.isin(predictions, (0, 1)), predictions, 1 - labels)
    assert scores(CLASSES, predictions, labels) == scores(CLASSES, wrong, labels)


def test_no_label_is_wrong_among_many_classes():
    assert scores(["accuracy"], np.array([0, 1, math.nan, 5, 2]), np.arange(5)) == {"accuracy": 0.4}


def test_no_number_is_t5s_minus_one():
    labels = np.array([0, 2, 4, 5.0])
    without, with_one = (scores(NUMBERS, np.array([1, 2, 3, last]), labels) for last in (math.nan, -1))
    assert without == with_one
    assert without["pearson"] < 0.5


@pytest.mark.parametrize("predictions", [np.zeros(10), np.full(10, math.nan), np.array([math.inf] + [1.0] * 9)])
def test_a_constant_has_no_correlation(predictions):
    assert all(map(math.isnan, scores(NUMBERS, predictions, np.arange(10) / 2).values()))


def test_a_constant_class_has_matthews_0_and_an_f1():
    assert scores(CLASSES, np.zeros(10), LABELS) == {"accuracy": 0.4, "f1": 0.0, "matthews": 0.0}
    assert scores(["f1"], np.zeros(3), np.zeros(3)) == {"f1": 0.0}


def test_numbers_that_hardly_vary_and_a_single_example_are_no_error():
    scores(NUMBERS, 1 + 1e-15 * np.arange(10), np.arange(10) / 2)
    assert all(map(math.isnan, scores(NUMBERS, np.array([1.0]), np.array([2.0])).values()))


def test_nothing_is_imported_before_it_is_needed():
    check = "import sys, relora_lab.metrics; sys.exit('sklearn' in sys.modules or 'scipy' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
