"""The line logs of runs as tables; a log that many look at is read once."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.json

from analysis.cache import remembered
from analysis.load import METRICS
from relora_lab.runs import RunFolder

COLUMNS = {
    "metrics": ("step", "loss", "lr", "tokens", "tokens_per_second"),
    "eval": ("step", "loss", "perplexity", *METRICS),
    "norms": ("matrix", "step", "cycle", "moment", "sBA", "A", "B", "W_merged", "delta_W"),
}
TEXTS = ("matrix", "moment")


def read(run: str | Path, log: str) -> pd.DataFrame:
    """The whole lines of metrics, eval or norms, a row a line, with COLUMNS as floats (NaN where a line has null).

    Raises BadInput, naming file and line, for one that is damaged.
    """
    return _read(run, log).copy()


def _files(run: Path, log: str) -> list[Path]:
    path = RunFolder(run).logs.path(log)
    return [path] if path.exists() else []


@remembered(_files)
def _read(run: Path, log: str) -> pd.DataFrame:
    text = b"".join(path.read_bytes() for path in _files(run, log))
    try:
        lines = pa.json.read_json(io.BytesIO(text[: text.rindex(b"\n") + 1]))
        known = [name for name in COLUMNS[log] if name in lines.column_names]
        return _table(lines.select(known).to_pandas(), log)
    except (pa.ArrowException, ValueError):  # which says less than the log's own reader of what is wrong
        return _table(RunFolder(run).logs.read(log), log)


def _table(lines: pd.DataFrame | list[dict[str, object]], log: str) -> pd.DataFrame:
    frame = pd.DataFrame(lines, columns=list(COLUMNS[log]))
    return frame.astype({name: np.float64 for name in frame if name not in TEXTS})
