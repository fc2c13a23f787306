"""The learning-rate sweep: which rate each row of the `findings` grids has, and why."""

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from analysis import load_runs
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig

TIE = 0.001  # nats, about what one seed tells of a rate


def of_grids(folders: Iterable[Path]) -> pd.DataFrame:
    """A row a run of the sweep: row (whose rate it looks for), lr, seed, state, loss, chosen.

    Chosen is the lowest rate whose loss is within TIE of the row's best.
    """
    runs = pd.concat([load_runs(folder).astype({"label": str}) for folder in folders], ignore_index=True)
    lr = [rate(RunFolder(path).config) for path in runs["path"]]
    row = [re.sub("-(low_rank_)?lr.*", "", label) for label in runs["label"]]
    found = runs[["seed", "state", "loss"]].assign(row=row, lr=lr).sort_values(["row", "lr"], ignore_index=True)
    loss = found["loss"].where(found["state"] == "finished")
    near = found[loss <= loss.groupby(found["row"]).transform("min") + TIE]
    found["chosen"] = found.index.isin(near.drop_duplicates("row").index)
    return found[["row", "lr", "seed", "state", "loss", "chosen"]]


def rate(config: RunConfig) -> float:
    """The peak rate of the phase that methods differ in: the low-rank one, or else the only one."""
    return config.low_rank_lr if config.low_rank else config.optimizer.lr
