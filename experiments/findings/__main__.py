"""Measure the runs of the `findings` grids and write what they show.

python -m experiments.findings             # runs/ → docs/findings/ (CSV, figures, the report) and FINDINGS.md
python -m experiments.findings --document  # FINDINGS.md and the figure from the CSV files alone
"""

import argparse
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from analysis import output, report
from analysis.report import drawing
from experiments.findings import contrasts, document, measured, rates, verdicts
from relora_lab import files
from relora_lab.errors import BadInput, require

SWEEP = ("findings-lr-full", "findings-lr-low-rank")
GRIDS = ("findings-ingredients", "findings-combinations", "findings-methods")
TASKS = ("table3-cpu", "table8-cpu")
VERSIONS = {"torch": str, "python": str}


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 and one line for runs that are not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the grids are")
    parser.add_argument("--out", type=Path, default=Path("docs/findings"), help="where CSV files and figures go")
    parser.add_argument("--file", type=Path, default=Path("FINDINGS.md"), help="what is written")
    parser.add_argument("--document", action="store_true", help="only from the CSV files in --out")
    given = parser.parse_args(arguments)
    try:
        if not given.document:
            measure(given.runs, given.out)
        write(given.out, given.file)
    except BadInput as error:
        print(f"findings: {error}", file=sys.stderr)
        return 2
    return 0


def measure(runs: Path, out: Path) -> None:
    """runs.csv, rates.csv and the report, of finished grids in `runs`."""
    for grid in (*SWEEP, *GRIDS, *TASKS):
        require((runs / grid).is_dir(), f"{runs / grid}: is not there; `make findings` trains it")
    out.mkdir(parents=True, exist_ok=True)
    output.write_csv(out / "rates.csv", rates.of_grids([runs / grid for grid in SWEEP]))
    output.write_csv(out / "runs.csv", measured.of_grids({grid: runs / grid for grid in (*GRIDS, *TASKS)}))
    with TemporaryDirectory() as folder:  # what the page holds anyway, its figures and their numbers, is left behind
        report.build([runs / grid for grid in GRIDS], Path(folder) / "report", progress=True)
        shutil.rmtree(out / "report", ignore_errors=True)
        left = shutil.ignore_patterns("figures", "*.tex", "*.md", ".*")
        shutil.copytree(Path(folder) / "report", out / "report", ignore=left)


def write(out: Path, file: Path) -> None:
    """verdicts.csv, the figure and FINDINGS.md, of runs.csv and rates.csv in `out`."""
    runs, swept = pd.read_csv(out / "runs.csv", dtype=VERSIONS), pd.read_csv(out / "rates.csv")
    claims = verdicts.claims()
    found = verdicts.verdicts(claims, runs)
    output.write_csv(out / "verdicts.csv", found)
    drawn = drawing.draw(contrasts, contrasts.of_loss(claims, found))
    files.write_bytes(out / "contrasts.svg", drawn.files["svg"])
    files.write_text(file, document.render(claims, found, runs, swept))


if __name__ == "__main__":
    sys.exit(main())
