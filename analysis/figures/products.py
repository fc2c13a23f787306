"""Spectra of s·B·A itself: the papers' LoRA curve (P1 Figures 3, 4, 11 and 12)."""

import pandas as pd
from matplotlib.axes import Axes

from analysis import products
from analysis.figures import TWO_COLUMNS, by_name, labelled, spectra

ORDER = 14
OPTIONAL = True
SIZE = (TWO_COLUMNS, 2.1)


def data(runs: pd.DataFrame) -> pd.DataFrame:
    """As the data of spectra, and product: are they values of s·B·A, of low-rank runs from scratch, or of ΔW?

    ΔW is that of full rank and ReLoRA. Empty where no run is low-rank from scratch.
    """
    found = products.of_runs(runs)
    if found.empty:
        return found
    found = spectra.of_paper(found)
    bars = spectra.histograms(found, upper=spectra.upper_end(found))
    if bars.empty:
        return bars
    return labelled(bars.merge(found[["label", "product"]].drop_duplicates(), on="label"), runs)


def draw(frame: pd.DataFrame, ax: Axes) -> None:
    """As spectra does."""
    spectra.draw(frame, ax)


def describe(frame: pd.DataFrame) -> str:
    """Which are products, and what spectra says."""
    labels = [label for label, rows in by_name(frame) if rows["product"].iloc[0]]
    return f"Of {', '.join(labels)} these are values of s·B·A, of all others of ΔW. {spectra.describe(frame)}"
