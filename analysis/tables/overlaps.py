"""Do new factors find the old subspace? Overlap of successive cycles' updates, beside chance (P1 Section 3)."""

from functools import lru_cache
from pathlib import Path

import pandas as pd

from analysis.statistics import standard_error
from analysis.subspaces import CYCLES, SIDES, cycle_overlaps
from relora_lab.runs import RunFolder

ORDER = 7
OPTIONAL = True
NOTE = (
    "overlap: mean cos² of the principal angles between the subspaces of a cycle's update and of the next one's (1: "
    "one lies in the other), mean over matrices and pairs, ± standard error over seeds; out: column spaces (of B), "
    "in: row spaces (of A). energy: share of the next update's ‖·‖² that lies in the subspace of the one before. "
    "chance: what each would be if one of the subspaces were random. pairs: of successive updates, in a run."
)
MEASURES = {"overlap": "chance", "energy": "energy_chance"}


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a label with two or more factored cycles: n runs, pairs, overlap, energy and chance of both sides."""
    found = of_runs(runs)
    rows = []
    for label, group in found.groupby("label", observed=True):
        pairs = group.groupby("run")["cycle"].nunique()
        row = {"label": label, "n": len(pairs), "pairs": int(pairs.max())}
        for measure, chance in MEASURES.items():
            for side, mine in group.groupby("side", observed=True):
                by_run = mine.groupby("run")[[measure, chance]].mean()
                row |= {f"{measure}_{side}": float(by_run[measure].mean())}
                row |= {f"{measure}_{side}_error": standard_error(by_run[measure].dropna())}
                row |= {f"{chance}_{side}": float(by_run[chance].mean())}
        rows.append(row)
    return pd.DataFrame(rows)


def of_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """`cycle_overlaps` of all runs, with `label`, `seed`, `run` and `step`, at which the later cycle ended.

    Empty where no run has two factored cycles.
    """
    frames = [
        _of_run(run.path, _state(run.path)).assign(label=run.label, seed=run.seed, run=run.run)
        for run in runs.itertuples()
    ]
    frames = [frame for frame in frames if len(frame)]
    found = pd.concat(frames) if frames else pd.DataFrame(columns=[*CYCLES, "step", "label", "seed", "run"])
    return found.astype({"label": runs["label"].dtype, "side": pd.CategoricalDtype(SIDES, ordered=True)})


def _state(path: str) -> tuple[tuple[str, int, int], ...]:
    files = sorted(Path(path).glob("cycles/*"))
    return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)


@lru_cache(maxsize=256)
def _of_run(path: str, state: tuple[tuple[str, int, int], ...]) -> pd.DataFrame:  # noqa: ARG001 (part of the key)
    ends = {facts["cycle"]: facts["end"] for facts in RunFolder(path).cycle_facts()}
    found = cycle_overlaps(path)
    return found.assign(step=found["next_cycle"].map(ends))
