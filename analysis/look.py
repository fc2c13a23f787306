"""A look at what two models differ by, as text, as JSON, as files: the command `relora-lab spectrum`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import counts, output, parallel, random_matrix, spectra, subspaces
from analysis.matching import Matrix, open_pair
from analysis.naming import Selection, role_key
from analysis.spectra import Comparison, Method
from analysis.tables import shown
from relora_lab import files
from relora_lab.errors import require
from relora_lab.runs import RunFolder

TOP = 16  # leading directions
VECTORS = ["out_energy", "out_chance", "in_energy", "in_chance", "intruders", "least_similar"]


@dataclass(frozen=True)
class Look:
    """Two models' difference, counted at `thresholds`; of one run's two ends also the rank ceiling."""

    label: str
    start: str
    final: str
    thresholds: tuple[float, ...]
    comparison: Comparison
    matrices: pd.DataFrame  # a row a matrix: shape, rank measures, noise; ceiling, vectors and tail where asked for
    merges: int
    pairs: list[Matrix]

    @property
    def nonfinite(self) -> dict[str, int]:
        """How many entries are NaN or infinite, by matrix, where any are."""
        found = self.matrices[self.matrices["nonfinite"] > 0]
        return dict(zip(found["matrix"], found["nonfinite"].astype(int), strict=True))

    @property
    def counts(self) -> pd.DataFrame:
        """Below and above each threshold, by matrix."""
        return counts.count_singular_values(self.comparison.spectra, self.thresholds)

    def as_text(self) -> str:
        """A few lines for a terminal."""
        ends = f"{self.start} → {self.final}" if self.start != self.final else f"{self.start}: warm_start → final"
        table = counts.by_role(self.comparison, self.thresholds, merges=self.merges)
        return "\n".join(
            [
                f"ΔW of {len(self.matrices)} matrices, {ends}",
                shown(table).to_string(index=False),
                *self._asked_for(),
                *self._remarks(),
            ]
        )

    def _asked_for(self) -> list[str]:
        """Means by role of what --vectors and --tail add."""
        asked = [name for name in [*VECTORS, "alpha"] if name in self.matrices]
        roles = sorted(set(self.matrices["role"]), key=role_key)
        means = self.matrices.groupby("role")[asked].mean().loc[roles].reset_index()
        top = max(_top(matrix) for matrix in self.pairs)
        of_vectors = f"share of ‖ΔW‖² in W's {top} leading directions, and by chance; intruder dimensions of 10"
        told = [of_vectors] * ("intruders" in asked) + ["power-law exponent alpha of the tail"] * ("alpha" in asked)
        return [f"{'; '.join(told)}; means over matrices:", shown(means).to_string(index=False)] if asked else []

    def _remarks(self) -> list[str]:
        matrices, left_out = self.matrices, self.comparison.left_out
        lines = [f"{left_out} tensors left out (embeddings, head, norms, or not selected)"]
        unchanged = int((matrices["frobenius"] == 0).sum())
        if unchanged:
            lines.append(f"{unchanged} of the matrices have not changed at all")
        ambiguous = int(self.counts["ambiguous"].sum())
        if ambiguous:
            lines.append(
                f"{ambiguous} counts are ambiguous: a singular value is as near to the threshold as rounding"
            )
        if "ceiling" in matrices:
            low, high = matrices["ceiling"].min(), matrices["ceiling"].max()
            lines.append(f"rank ceiling of this run: {low}" + (f" to {high}" if high > low else ""))
        return lines

    def as_table(self) -> dict[str, Any]:
        """Everything, for JSON; what is not finite is None."""
        by_matrix = dict(iter(self.counts.groupby("matrix", sort=False)))
        sigmas = dict(iter(self.comparison.spectra.groupby("matrix", sort=False)["sigma"]))
        rows = []
        for row in self.matrices.to_dict("records"):
            facts = {name: _plain(value) for name, value in row.items()}
            told = by_matrix[row["matrix"]][["threshold", "below", "above", "total", "ambiguous"]].to_dict("records")
            facts["counts"] = [{name: _plain(value) for name, value in one.items()} for one in told]
            rows.append(facts | {"sigma": [_plain(value) for value in sigmas[row["matrix"]]]})
        return {"start": self.start, "final": self.final, "left_out": self.comparison.left_out, "matrices": rows}


def at(
    start: str | Path,
    final: str | Path | None = None,
    thresholds: Sequence[float] = (0.1,),
    match: str | Sequence[str] | None = None,
    *,
    roles: str | Sequence[str] | None = None,
    layers: int | Sequence[int] | None = None,
    label: str = "ΔW",
    vectors: bool = False,
    tail: bool = False,
    method: Method = "auto",
    device: str = "cpu",
    workers: int | None = None,
    cache: bool = True,
) -> Look:
    """Compare two models as spectra.compare does; one run folder alone means its two ends.

    With `vectors` also how ΔW is aligned with W, and its intruder dimensions (see analysis.subspaces), with `tail`
    its power-law exponent (analysis.random_matrix). Raises BadInput where `compare` does, and where every ΔW is
    exactly zero.
    """
    one_run = final is None
    final = start if final is None else final
    for tau in thresholds:
        require(0 <= tau < float("inf"), f"--threshold: expected a number ≥ 0, got {tau}")
    if one_run:
        require(RunFolder(start).started, f"{start}: is no run folder; give two checkpoints, START and FINAL")
    chosen: dict[str, Any] = {"match": match, "roles": roles, "layers": layers}
    comparison = spectra.compare(
        start, final, **chosen, method=method, device=device, workers=workers, cache=cache, progress=True
    )
    spectra.require_change(comparison, final)
    merges = counts.merges_since_reference(final) if RunFolder(final).started else 1
    ranks = counts.numerical_ranks(comparison, merges=merges)
    matrices = comparison.matrices.merge(ranks[["matrix", "rank", "floor"]])
    parts = [
        counts.rank_measures(comparison.spectra, ranks).drop(columns=["numerical_rank", "frobenius_norm"]),
        random_matrix.marchenko_pastur(comparison.spectra).rename(columns=lambda name: _of_noise(name)),
    ]
    if one_run:
        parts.append(counts.rank_ceilings(final, comparison.matrices)[["matrix", "ceiling"]])
    if tail:
        parts.append(random_matrix.tail_exponents(comparison.spectra))
    pairs = open_pair(start, final, Selection.of(match, roles, layers)).matrices
    if vectors:
        parts.append(_vectors(pairs, workers))
    for part in parts:
        own = [name for name in part.columns if name == "matrix" or name not in matrices.columns]
        matrices = matrices.merge(part[own], on="matrix", how="left")
    return Look(label, str(start), str(final), tuple(thresholds), comparison, matrices, merges, pairs)


def overlaps(looks: Sequence[Look], workers: int | None = None) -> pd.DataFrame:
    """How far the largest directions of each two ΔW are the same: label, other, then subspaces.delta_overlaps's."""
    found = []
    for one, other in combinations(looks, 2):
        by_name = {matrix.name: matrix for matrix in other.pairs}
        both = [(matrix, by_name[matrix.name]) for matrix in one.pairs if matrix.name in by_name]
        rows = parallel.each(
            lambda pair: subspaces.delta_overlaps([pair[0]], [pair[1]], _top(pair[0])),
            both,
            workers=workers,
            progress="overlaps",
        )
        found += [frame.assign(label=one.label, other=other.label) for frame in rows]
    frame = pd.concat(found, ignore_index=True)
    return frame[["label", "other", *(name for name in frame.columns if name not in ("label", "other"))]]


def as_text(looks: Sequence[Look], overlap: pd.DataFrame | None = None) -> str:
    """Each look, and what they have in common."""
    parts = [look.as_text() for look in looks]
    if overlap is not None:
        measures = overlap.groupby(["label", "other", "side"])[["overlap", "chance", "largest_cosine"]]
        about = f"overlap of the {overlap['top'].max()} largest directions of ΔW, mean over matrices:"
        parts.append(f"{about}\n{shown(measures.mean().reset_index()).to_string(index=False)}")
    return "\n\n".join(parts)


def as_json(looks: Sequence[Look]) -> str:
    """One look as an object, several as a list of them."""
    tables = [look.as_table() for look in looks]
    return json.dumps(tables[0] if len(tables) == 1 else tables, indent=1, allow_nan=False, ensure_ascii=False)


def write(looks: Sequence[Look], out: Path, overlap: pd.DataFrame | None = None) -> None:
    """Spectra, counts and matrices as parquet, counts and matrices as CSV too; figures as PNG and PDF.

    Raises BadInput if `out` cannot be written.
    """
    from analysis import figures  # matplotlib takes a second to import
    from analysis.figures import effective_rank, spectra_by_layer
    from analysis.figures import spectra as pooled

    output.check(out).mkdir(parents=True, exist_ok=True)
    found = _labelled(looks, [look.comparison.spectra for look in looks])
    tables = {
        "spectra": found,
        "counts": _labelled(looks, [look.counts for look in looks]),
        "matrices": _labelled(looks, [look.matrices for look in looks]),
    }
    if overlap is not None:
        tables["overlaps"] = overlap
    for name, table in tables.items():
        with files.new_file(out / f"{name}.parquet") as writing:
            table.to_parquet(writing, index=False)
        if name != "spectra":
            output.write_csv(out / f"{name}.csv", table)
    for module, frame in (
        (pooled, pooled.histograms(found, upper=pooled.upper_end(found))),
        (spectra_by_layer, spectra_by_layer.histograms_by_layer(found)),
        (effective_rank, effective_rank.by_layer(found)),
    ):
        if frame.empty:
            continue
        figure = figures.make(module, frame)
        for kind in ("png", "pdf"):
            figures.save(figure, out / f"{module.__name__.rpartition('.')[2]}.{kind}")


def _labelled(looks: Sequence[Look], frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    labels = [look.label for look in looks]
    frame = pd.concat([f.assign(label=label) for f, label in zip(frames, labels, strict=True)], ignore_index=True)
    frame["label"] = pd.Categorical(frame["label"], labels, ordered=True)
    return frame[["label", *(name for name in frame.columns if name != "label")]]


def _vectors(pairs: Sequence[Matrix], workers: int | None) -> pd.DataFrame:
    found = parallel.each(_of_matrix, pairs, workers=workers, progress="vectors")
    return pd.concat(found, ignore_index=True)


def _top(matrix: Matrix) -> int:
    """How many leading directions are looked at: of a small matrix so few that they are no matter of course."""
    return min(TOP, min(matrix.rows, matrix.cols) // 4 or 1)


def _of_matrix(matrix: Matrix) -> pd.DataFrame:
    aligned, intruders = subspaces.alignment([matrix], _top(matrix)), subspaces.intruder_dimensions([matrix])
    return aligned.assign(**{name: intruders[name] for name in ("intruders", "least_similar")})[["matrix", *VECTORS]]


def _of_noise(name: str) -> str:
    return f"noise_{name}" if name in ("lower", "upper", "above", "energy_above") else name


def _plain(value: Any) -> Any:
    """A number or text as JSON has it."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is pd.NA or (isinstance(value, float) and not np.isfinite(value)):
        return None
    return value
