"""Norms of factors and weights over training, with the values just before and just after every restart."""

from pathlib import Path

import pandas as pd

from analysis import logs
from relora_lab import sizes
from relora_lab.runs import RunFolder

NORMS = ["sBA", "A", "B", "W_merged", "delta_W"]


def norm_traces(run: str | Path) -> pd.DataFrame:
    """Frobenius norms of every matrix of a run, a row a matrix and moment, in the order of training.

    Columns: matrix, layer, role, step, cycle (restarts so far), moment ("trace", or "before" and "after" a
    restart at the same step), and the norms sBA, A, B, W_merged and delta_W (NaN at full rank, and before the
    reference step). P2's Figure 1 drops at each reset: that is sBA; the merged W does not move there.
    """
    folder = RunFolder(run)
    places = pd.DataFrame([(m.name, m.layer, m.role) for m in sizes.matrices(folder.config.model.shape)])
    places.columns = pd.Index(["matrix", "layer", "role"])
    columns = ["matrix", "step", "cycle", "moment", *NORMS]
    logged = logs.read(run, "norms")[columns].astype({"step": int, "cycle": int})
    traces = logged.merge(places, on="matrix", how="left")
    return traces[["matrix", "layer", "role", *columns[1:]]]
