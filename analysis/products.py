"""Spectra as P1 draws them: its LoRA is a low-rank network from scratch, and its spectrum that of s·B·A itself."""

import numpy as np
import pandas as pd

from analysis import spectra
from analysis.cache import remembered
from analysis.naming import MATRIX, identity
from analysis.singular import NotFinite, singular_values
from relora_lab import sizes
from relora_lab.runs import RunFolder


def of_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Spectra of s·B·A of runs that are nothing else (see `is_product`), of ΔW of full-rank and ReLoRA runs.

    Columns: those of spectra.of_runs, and product (is it s·B·A?). A matrix of non-finite entries has sigma NaN.
    Controls are left out. Empty where no run is a product, or none of them has come to its end.
    """
    ended = runs["path"].map(lambda path: (RunFolder(path).path / "final").is_dir())
    products = runs[is_product(runs) & ended]
    if products.empty:
        return pd.DataFrame()
    found = [
        _of_run(run.path).assign(label=run.label, seed=run.seed, run=run.run, product=True)
        for run in products.itertuples()
    ]
    others = runs[runs["method"].isin(["full", "relora"]) & ~runs["control"]]
    found.append(spectra.of_runs(others).assign(product=False))
    frame = pd.concat([rows for rows in found if len(rows)], ignore_index=True)
    return frame[[*spectra.FIRST, *spectra.COLUMNS, "product"]].astype({"label": runs["label"].dtype})


def is_product(runs: pd.DataFrame) -> pd.Series:
    """Is W = s·B·A all the time? That is a base of zero whose factors are never merged: method low_rank, mostly."""
    base = runs["method.base"] if "method.base" in runs else pd.Series("", index=runs.index)
    return (base == "zero") & runs["method"].isin(["low_rank", "lora"])


@remembered(lambda path: [RunFolder(path).weights("final") / "model.safetensors"])
def _of_run(path: str) -> pd.DataFrame:
    """Singular values of a run's final merged weights, a row each."""
    folder, frames = RunFolder(path), []
    for matrix in sizes.matrices(folder.config.model.shape):
        weight = folder.weight("final", f"{matrix.name}.weight")
        try:
            sigma = singular_values(weight)
        except NotFinite:
            sigma = np.full(min(weight.shape), np.nan)
        frames.append(pd.DataFrame({**identity(matrix), "index": range(len(sigma)), "sigma": sigma}))
    return pd.concat(frames, ignore_index=True)[[*MATRIX, "index", "sigma"]]
