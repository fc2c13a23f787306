"""How well a task is done: GLUE's metrics, as scikit-learn and scipy compute them, as fractions."""

import math
import warnings
from collections.abc import Sequence

import numpy as np

NUMBER_OF_NONE = -1.0  # what T5's evaluation takes for a number where what was written is none


def scores(metrics: Sequence[str], predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Each metric by its name: accuracy, f1 (of label 1), matthews, pearson, spearman.

    A prediction that is nan (a T5 wrote something else), or no label, is wrong: for f1 and matthews it is the other
    of two labels, as in T5's own f1, and in place of a number it is -1. A correlation is nan where predictions or
    labels do not vary or are not finite; matthews is 0 where they do not vary.
    """
    predictions, labels = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what does not vary, or hardly
        return {name: _score(name, predictions, labels) for name in metrics}


def _score(name: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy import stats
    from sklearn import metrics  # takes a second to import

    if name == "accuracy":
        return float(metrics.accuracy_score(labels, np.nan_to_num(predictions, nan=NUMBER_OF_NONE)))
    if name == "f1":
        return float(metrics.f1_score(labels, _of_two(predictions, labels), zero_division=0))
    if name == "matthews":
        return float(metrics.matthews_corrcoef(labels, _of_two(predictions, labels)))
    correlation = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[name]
    numbers = np.where(np.isnan(predictions), NUMBER_OF_NONE, predictions)
    if not np.isfinite(numbers).all() or np.ptp(numbers) == 0 or np.ptp(labels) == 0:
        return math.nan
    return float(correlation(numbers, labels).statistic)


def _of_two(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The predictions, each that is neither 0 nor 1 replaced by the label that is wrong."""
    return np.where(np.isin(predictions, (0, 1)), predictions, 1 - labels)
