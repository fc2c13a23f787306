"""A look at what two checkpoints differ by, as text, as JSON, as files: the command `relora-lab spectrum`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import counts, output, spectra
from analysis.spectra import Comparison
from analysis.tables import shown
from relora_lab.errors import require
from relora_lab.runs import RunFolder


@dataclass(frozen=True)
class Look:
    """Two checkpoints' difference, counted at `thresholds`; of one run's two ends also the rank ceiling."""

    start: Path
    final: Path
    thresholds: tuple[float, ...]
    comparison: Comparison
    matrices: pd.DataFrame  # a row a matrix: shape, norm, rank, floor, and ceiling where it is known
    merges: int

    @property
    def nonfinite(self) -> dict[str, int]:
        """How many entries are NaN or infinite, by matrix, where any are."""
        found = self.matrices[self.matrices["nonfinite"] > 0]
        return dict(zip(found["matrix"], found["nonfinite"].astype(int), strict=True))

    def as_text(self) -> str:
        """A few lines for a terminal."""
        table = shown(counts.by_role(self.comparison, self.thresholds, merges=self.merges))
        ends = f"{self.start} → {self.final}" if self.start != self.final else f"{self.start}: warm_start → final"
        about = f"ΔW of {len(self.matrices)} matrices, {ends}"
        left_out = f"{self.comparison.left_out} tensors left out (embeddings, head, norms, or not selected)"
        lines = [about, table.to_string(index=False), left_out]
        if "ceiling" in self.matrices:
            low, high = self.matrices["ceiling"].min(), self.matrices["ceiling"].max()
            lines.append(f"rank ceiling of this run: {low}" + (f" to {high}" if high > low else ""))
        return "\n".join(lines)

    def as_json(self) -> str:
        """Everything, as one JSON object; what is not finite is null."""
        counted = counts.count_singular_values(self.comparison.spectra, self.thresholds)
        by_matrix = dict(iter(counted.groupby("matrix", sort=False)))
        sigmas = dict(iter(self.comparison.spectra.groupby("matrix", sort=False)["sigma"]))
        rows = []
        for row in self.matrices.to_dict("records"):
            facts = {name: _plain(value) for name, value in row.items()}
            told = by_matrix[row["matrix"]][["threshold", "below", "above", "total"]].to_dict("records")
            facts["counts"] = [{name: _plain(value) for name, value in one.items()} for one in told]
            rows.append(facts | {"sigma": [_plain(value) for value in sigmas[row["matrix"]]]})
        about = {"start": str(self.start), "final": str(self.final), "left_out": self.comparison.left_out}
        return json.dumps({**about, "matrices": rows}, indent=1, allow_nan=False, ensure_ascii=False)

    def write(self, out: Path) -> None:
        """spectra.csv, counts.csv, matrices.csv, spectra.png and spectra.pdf. Raises BadInput if `out` cannot be."""
        from analysis import figures  # matplotlib takes a second to import
        from analysis.figures import spectra as figure

        output.check(out).mkdir(parents=True, exist_ok=True)
        found = self.comparison.spectra
        output.write_csv(out / "spectra.csv", found)
        output.write_csv(out / "counts.csv", counts.count_singular_values(found, self.thresholds))
        output.write_csv(out / "matrices.csv", self.matrices)
        bars = figure.histograms(found.assign(label="ΔW"))
        for kind in ("png", "pdf") if len(bars) else ():
            figures.save(figures.make(figure, bars), out / f"spectra.{kind}")


def at(
    start: str | Path,
    final: str | Path | None = None,
    thresholds: Sequence[float] = (0.1,),
    match: Sequence[str] | None = None,
    *,
    workers: int | None = None,
) -> Look:
    """Compare two checkpoints as spectra.compare does; one run folder alone means its two ends.

    Raises BadInput where `compare` does, and where every ΔW is exactly zero.
    """
    start, one_run = Path(start), final is None
    final = start if final is None else Path(final)
    for tau in thresholds:
        require(0 <= tau < float("inf"), f"--threshold: expected a number ≥ 0, got {tau}")
    if one_run:
        require(RunFolder(start).started, f"{start}: is no run folder; give two checkpoints, START and FINAL")
    comparison = spectra.compare(start, final, match=match, workers=workers, progress=True)
    spectra.require_change(comparison, final)
    merges = counts.merges_since_reference(final) if RunFolder(final).started else 1
    ranks = counts.numerical_ranks(comparison, merges=merges)
    matrices = comparison.matrices.merge(ranks[["matrix", "rank", "floor"]])
    if one_run:
        matrices = matrices.merge(counts.rank_ceilings(final, comparison.matrices)[["matrix", "ceiling"]])
    return Look(start, final, tuple(thresholds), comparison, matrices, merges)


def _plain(value: Any) -> Any:
    """A number or text as JSON has it."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is pd.NA or (isinstance(value, float) and not np.isfinite(value)):
        return None
    return value
