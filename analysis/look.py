"""A look at what two models differ by, as text, as JSON, as files: the command `relora-lab spectrum`."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import counts, output, parallel, random_matrix, spectra, subspaces
from analysis.matching import EVERYTHING, Matched, Matrix, match_models
from analysis.naming import Selection, role_key
from analysis.spectra import Comparison
from analysis.tables import shown
from relora_lab import files
from relora_lab.errors import printable, require
from relora_lab.runs import RunFolder

TOP = 16  # leading directions
VECTORS = ["out_energy", "out_chance", "in_energy", "in_chance", "intruders", "least_similar"]


@dataclass(frozen=True)
class Look:
    """Two models' difference, counted at `thresholds`; of one run's two ends also the rank ceiling."""

    label: str
    matched: Matched
    thresholds: tuple[float, ...]
    comparison: Comparison
    matrices: pd.DataFrame  # a row a matrix: shape, rank measures, noise; ceiling, vectors and tail where asked for
    merges: int

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
        start, final = self.matched.start, self.matched.final
        ends = f"{start}: warm_start → final" if self.matched.run else f"{start} → {final}"
        table = counts.by_role(self.comparison, self.thresholds, merges=self.merges)
        return "\n".join(
            [
                printable(f"ΔW of {len(self.matrices)} matrices, {ends}"),
                shown(table).to_string(index=False),
                *self._asked_for(),
                *map(printable, self._remarks()),
            ]
        )

    def _asked_for(self) -> list[str]:
        """Means by role of what --vectors and --tail add."""
        asked = [name for name in [*VECTORS, "alpha"] if name in self.matrices]
        roles = sorted(set(self.matrices["role"]), key=role_key)
        means = self.matrices.groupby("role")[asked].mean().loc[roles].reset_index()
        top = max(_top(matrix) for matrix in self.matched.matrices)
        of_vectors = f"share of ‖ΔW‖² in W's {top} leading directions, and by chance; intruder dimensions of 10"
        told = [of_vectors] * ("intruders" in asked) + ["power-law exponent alpha of the tail"] * ("alpha" in asked)
        return [f"{'; '.join(told)}; means over matrices:", shown(means).to_string(index=False)] if asked else []

    def _remarks(self) -> list[str]:
        matrices, left_out = self.matrices, self.comparison.left_out
        lines = [f"{left_out} tensors left out (no linear map of a block, or not selected)"]
        if self.matched.passed_over:
            some = ", ".join(self.matched.passed_over[:3])
            lines.append(f"of them {len(self.matched.passed_over)} in blocks are no matrices that are known: {some}")
        unchanged = int((matrices["frobenius"] == 0).sum())
        if unchanged:
            lines.append(f"{unchanged} of the matrices have not changed at all")
        if self.nonfinite:
            lines.append(f"{len(self.nonfinite)} of the matrices are marked nonfinite; the rest is analysed")
        ambiguous = int(self.counts["ambiguous"].sum())
        if ambiguous:
            lines.append(
                f"{ambiguous} counts are ambiguous: a singular value is as near to the threshold as rounding"
            )
        if "ceiling" in matrices:
            known = matrices["ceiling"].dropna()
            low, high = (known.min(), known.max()) if len(known) else ("unknown, its cycles are missing", "")
            lines.append(f"rank ceiling of this run: {low}" + (f" to {high}" if len(known) and high > low else ""))
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
        about = {"label": self.label, "start": self.matched.start, "final": self.matched.final}
        return {**about, "left_out": self.comparison.left_out, "matrices": rows}


def at(
    start: str | Path,
    final: str | Path | None = None,
    thresholds: Sequence[float] = (0.1,),
    match: str | Sequence[str] | None = None,
    *,
    roles: str | Sequence[str] | None = None,
    layers: int | Sequence[int] | None = None,
    **options: Any,
) -> Look:
    """Compare two models as spectra.compare does; one run folder alone means its two ends. Options as `several`.

    Raises BadInput where `compare` does, and where every ΔW is exactly zero.
    """
    [look] = several(
        start, () if final is None else (final,), thresholds, Selection.of(match, roles, layers), **options
    )
    return look


def several(
    start: str | Path,
    finals: Sequence[str | Path],
    thresholds: Sequence[float] = (0.1,),
    selection: Selection = EVERYTHING,
    *,
    vectors: bool = False,
    tail: bool = False,
    **options: Any,
) -> list[Look]:
    """A look at each of several models beside the one they began from; without any at the ends of the run `start`.

    With `vectors` also how ΔW is aligned with W, and its intruder dimensions (see analysis.subspaces), with `tail`
    its power-law exponent (analysis.random_matrix). `options` are those of spectra.compare. Raises BadInput before
    any work where one of them does not fit, and where every ΔW of one is exactly zero.
    """
    for tau in thresholds:
        require(0 <= tau < float("inf"), f"--threshold: expected a number ≥ 0, got {tau}")
    if not finals:
        require(RunFolder(start).started, f"{start}: is no run folder; give two checkpoints, START and FINAL")
    labels = _labels(finals) if len(finals) > 1 else ["ΔW"]
    matched = [match_models(start, final, selection) for final in finals or (start,)]
    looks = []
    for label, models in zip(labels, matched, strict=True):
        comparison = spectra.compare_matched(models, progress=_bar(f"spectra of {label}"), **options)
        spectra.require_change(comparison, models.final)
        looks.append(_look(label, models, tuple(thresholds), comparison, vectors, tail, options.get("workers")))
    return looks


def _look(
    label: str,
    matched: Matched,
    thresholds: tuple[float, ...],
    comparison: Comparison,
    vectors: bool,
    tail: bool,
    workers: int | None,
) -> Look:
    merges = counts.merges_since_reference(matched.final) if RunFolder(matched.final).started else 1
    ranks = counts.numerical_ranks(comparison, merges=merges)
    parts = [
        ranks[["matrix", "rank", "floor"]],
        counts.rank_measures(comparison.spectra, ranks).drop(columns=["numerical_rank", "frobenius_norm"]),
        random_matrix.marchenko_pastur(comparison.spectra).rename(columns=_of_noise),
    ]
    if matched.run:
        parts.append(counts.rank_ceilings(matched.run.path, comparison.matrices)[["matrix", "ceiling"]])
    if tail:
        parts.append(random_matrix.tail_exponents(comparison.spectra))
    if vectors:
        found = parallel.each(_of_vectors, matched.matrices, workers=workers, progress=_bar("vectors"))
        parts.append(pd.concat(found, ignore_index=True))
    matrices = comparison.matrices
    for part in parts:
        own = [name for name in part.columns if name == "matrix" or name not in matrices.columns]
        matrices = matrices.merge(part[own], on="matrix", how="left")
    return Look(label, matched, thresholds, comparison, matrices, merges)


def _labels(finals: Sequence[str | Path]) -> list[str]:
    """Names of the models, as short as tells them apart. Raises BadInput for one that is given twice."""
    places = [str(Path(final).resolve()) if Path(final).exists() else str(final) for final in finals]
    for final, place in zip(finals, places, strict=True):
        require(places.count(place) == 1, f"{final}: is given twice")
    names = [Path(place).name for place in places]
    return [name if names.count(name) == 1 else str(final) for name, final in zip(names, finals, strict=True)]


def _bar(name: str) -> str:
    return printable(name) if sys.stderr.isatty() else ""


def overlaps(looks: Sequence[Look], workers: int | None = None) -> pd.DataFrame:
    """How far the largest directions of each two ΔW are the same: label, other, then subspaces.delta_overlaps's."""
    found = []
    for one, other in combinations(looks, 2):
        by_name = {matrix.name: matrix for matrix in other.matched.matrices}
        both = [(matrix, by_name[matrix.name]) for matrix in one.matched.matrices if matrix.name in by_name]
        rows = parallel.each(
            lambda pair: subspaces.delta_overlaps([pair[0]], [pair[1]], _top(pair[0])),
            both,
            workers=workers,
            progress=_bar("overlaps"),
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


def as_json(looks: Sequence[Look], overlap: pd.DataFrame | None = None) -> str:
    """One look as an object; several as "finals" of one, with their "overlaps"."""
    tables = [look.as_table() for look in looks]
    found: dict[str, Any] = tables[0] if len(tables) == 1 else {"start": looks[0].matched.start, "finals": tables}
    if overlap is not None:
        rows = overlap.to_dict("records")
        found["overlaps"] = [{str(name): _plain(value) for name, value in row.items()} for row in rows]
    return json.dumps(found, indent=1, allow_nan=False)


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


def _top(matrix: Matrix) -> int:
    """How many leading directions are looked at: of a small matrix so few that they are no matter of course."""
    return min(TOP, min(matrix.rows, matrix.cols) // 4 or 1)


def _of_vectors(matrix: Matrix) -> pd.DataFrame:
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
