"""Do new factors find the subspace of the old ones? Overlap of the updates of successive cycles (P1, Section 3)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from analysis.cache import remembered
from analysis.counts import EPS32
from analysis.naming import MATRIX, identity
from analysis.subspaces import OVERLAP, SIDES, frame, overlap
from relora_lab import sizes
from relora_lab.runs import Pair, RunFolder

CYCLES = [*MATRIX, "cycle", "next_cycle", "side", "rank", "next_rank", *OVERLAP, "energy", "energy_chance"]


def cycle_overlaps(run: str | Path) -> pd.DataFrame:
    """Do a cycle's factors find the subspace of those before? Two rows (sides) a factored matrix and pair of cycles.

    The test of P1's Section 3, that old optimizer states guide new factors into the old subspace. A cycle's update
    is the sum of its signed products scale·B·A, which is what it added to W where its facts say `factored`. Where
    cycles end without a merge the same factors go on: they are one update, to the last of them, whose number it has.
    Only cycles since the reference step count.

    Columns: matrix, layer, role, rows, cols, cycle, next_cycle, side, rank (of the earlier update), next_rank,
    largest_cosine, overlap and chance (as in subspaces.py; NaN beside an update that is 0), energy (share of the next
    update's ‖·‖_F² in the earlier one's subspace), energy_chance (rank / n). Bases are computed from the factors;
    directions below eps32·Σ|scale|·‖B‖_F·‖A‖_F, which float32 factors cannot tell, count as none. Empty where no two
    updates follow one another. Values of factors that are not finite are missing.
    """
    folder = RunFolder(run)
    lives = _lives(folder.cycle_facts(since=folder.config.training.reference))
    places = {matrix.name: matrix for matrix in sizes.matrices(folder.config.model.shape)}
    rows = []
    for name in folder.factored_matrices([facts for life in lives for facts in life]):
        matrix = places[name]
        updates = ((life[-1]["cycle"], _update(_pairs(folder, name, life))) for life in lives)
        for (cycle, earlier), (next_cycle, later) in pairwise(updates):
            about = identity(matrix) | {"cycle": cycle, "next_cycle": next_cycle}
            rows += [about | {"side": side} | _cycle_overlap(earlier, later, side) for side in SIDES]
    return frame(rows, CYCLES)


def of_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """`cycle_overlaps` of all runs, with `label`, `seed`, `run` and `step`, at which the later cycle ended.

    Empty where no run has two factored cycles.
    """
    frames = [_of_run(run.path).assign(label=run.label, seed=run.seed, run=run.run) for run in runs.itertuples()]
    frames = [found for found in frames if len(found)]
    found = pd.concat(frames) if frames else pd.DataFrame(columns=[*CYCLES, "step", "label", "seed", "run"])
    return found.astype({"label": runs["label"].dtype, "side": pd.CategoricalDtype(SIDES, ordered=True)})


@dataclass(frozen=True)
class _Update:
    """A sum of products: orthonormal bases of column and row space by side, as singular vectors, and sigma."""

    bases: dict[str, np.ndarray]
    sigma: np.ndarray


def _lives(cycles: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Cycles by the factors they trained: without a merge the same ones go on."""
    lives: list[list[dict[str, Any]]] = [[]]
    for facts in cycles:
        lives[-1].append(facts)
        if facts["merged"]:
            lives.append([])
    return [life for life in lives if life]


def _pairs(folder: RunFolder, name: str, life: list[dict[str, Any]]) -> Iterator[Pair]:
    """What a life added: −B·A as it began, +B·A as it ended. What lies between is in both signs."""
    yield from (pair for pair in folder.pairs(name, life[:1]) if pair[2] < 0)
    yield from (pair for pair in folder.pairs(name, life[-1:]) if pair[2] > 0)


def _update(pairs: Iterable[Pair]) -> _Update | None:
    """The sum of scale·B·A, never formed; None where a factor is not finite."""
    wide = [(B.double() * scale, A.double()) for B, A, scale in pairs]
    B, A = torch.cat([B for B, _ in wide], dim=1).numpy(), torch.cat([A for _, A in wide]).numpy()
    unsure = EPS32 * sum(float(B.norm() * A.norm()) for B, A in wide)
    if not np.isfinite(unsure):
        return None
    Q_B, R_B = np.linalg.qr(B)
    Q_A, R_A = np.linalg.qr(A.T)
    U, sigma, Vt = np.linalg.svd(R_B @ R_A.T, full_matrices=False)
    rank = int((sigma > unsure).sum())
    return _Update({"out": Q_B @ U[:, :rank], "in": Q_A @ Vt[:rank].T}, sigma[:rank])


def _cycle_overlap(earlier: _Update | None, later: _Update | None, side: str) -> dict[str, Any]:
    if earlier is None or later is None:
        return {}
    Q, R, sigma = earlier.bases[side], later.bases[side], later.sigma
    found = {"rank": Q.shape[1], "next_rank": R.shape[1], **overlap(Q, R), "energy_chance": Q.shape[1] / len(Q)}
    if len(sigma):
        weights = np.square(sigma / sigma[0])
        found["energy"] = min(1.0, float(np.square(Q.T @ R).sum(axis=0) @ weights / weights.sum()))
    return found


@remembered(lambda path: RunFolder(path).all_cycle_files)
def _of_run(path: str) -> pd.DataFrame:
    ends = {facts["cycle"]: facts["end"] for facts in RunFolder(path).cycle_facts()}
    found = cycle_overlaps(path)
    return found.assign(step=found["next_cycle"].map(ends))
