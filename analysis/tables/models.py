"""What was trained (P1 Table 1)."""

import pandas as pd

from analysis import paper
from analysis.load import require_comparable
from relora_lab import sizes
from relora_lab.runs import RunFolder

ORDER = 10
PRINTED = [("P1", "Table 1"), ("P1v1", "Table 1")]
SHAPE = ("hidden", "intermediate", "heads", "layers")
NOTE = (
    "parameters: of the plain model. lr: peak learning rate of full-rank updates, low rank lr: of low-rank ones, the "
    "range over runs. tokens, or of a task examples: seen in training; P1's tokens leave padding out. P1 columns: "
    "printed, where a size is P1's."
)


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a model: size, parameters, shape, learning rates, tokens of a batch, sequence and run, P1's numbers; of a
    task examples in place of tokens."""
    require_comparable(runs)
    printed = paper.table("P1", "Table 1")
    settings = [RunFolder(path).config for path in runs["path"]]
    models = [(run.model.size, run.model.shape) for run in settings]
    rows, papers = [], []
    for size, shape in dict.fromkeys(models):
        mine = [run for run, model in zip(settings, models, strict=True) if model == (size, shape)]
        about = runs[[model == (size, shape) for model in models]]
        full = [run.optimizer.lr for run in mine if not run.low_rank or run.training.warm_start]
        low = [run.low_rank_lr for run in mine if run.low_rank]
        first = mine[0]
        of_task = first.task is not None
        batch = first.data.batch_size * (1 if of_task else first.data.sequence_length)
        what = "examples" if of_task else "tokens"
        row = {"size": size, "runs": len(mine), "parameters": about["parameters"].astype(float).max()}
        row |= {name: getattr(shape, name) for name in SHAPE}
        row |= {"lr_low": min(full, default=None), "lr_high": max(full, default=None)}
        row |= {"low_rank_lr_low": min(low, default=None), "low_rank_lr_high": max(low, default=None)}
        row |= {f"batch_{what}": batch, "sequence_length": first.data.sequence_length}
        rows.append(row | {"updates": first.training.steps, what: first.training.steps * batch})
        papers.append(size if shape == sizes.SIZES.get(size) and not of_task else None)
    frame = pd.DataFrame(rows).astype({"parameters": "Int64"})
    return pd.concat([frame, printed.reindex(papers).reset_index(drop=True).add_prefix("P1 ")], axis=1)
