"""Counts below and above a threshold, rank ceilings, and figures of what was counted."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.counts import count_singular_values
from analysis.figures import spectra as histogram

sigmas = st.lists(st.floats(0, 3), min_size=1, max_size=30)


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


@given(sigmas)
def test_a_histogram_counts_every_value_up_to_two(sigma):
    frame = histogram.histograms(spectrum(sigma).assign(label="x"))
    assert len(frame) == 50
    assert frame["count"].sum() == sum(value <= 2 for value in sigma)
    area = (frame["density"] * (frame["right"] - frame["left"])).sum()
    assert area == pytest.approx(frame["count"].sum() / len(sigma))
