"""The numbers that README.md quotes, as CSVs in docs/measured/; a test holds the README to them. Written by

demo.csv      relora-lab demo --seeds 0 1 2, the README's two controls, and then
              python -m experiments.measured runs/demo --csv docs/measured/demo.csv
step.csv      python -m experiments.benchmarks.step --repeats 3 --csv docs/measured/step.csv
spectrum.csv  python -m experiments.benchmarks.spectrum --weightwatcher PYTHON --csv docs/measured/spectrum.csv
grid.csv      python -m experiments.benchmarks.grid --csv docs/measured/grid.csv
faults.csv    make faults
"""

import argparse
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import counts, load_runs, output, spectra
from relora_lab.errors import BadInput
from relora_lab.runs import RunFolder

ABOUT = ["run", "label", "seed", "method", "control", "optimizer.lr", "trained", "parameters", "perplexity", "loss"]


def write(path: Path, rows: Sequence[Mapping[str, Any]], device: str = "cpu", **about: Any) -> None:
    """Write what a benchmark measured, a row a number, each with `about` and what it ran on."""
    from experiments.benchmarks import training  # torch, which run folders are read without

    machine = {"python": platform.python_version(), **training.machine(device)}
    output.write_csv(path, pd.DataFrame(rows).assign(**about, **machine))


def of_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a run: how it ended; of its ΔW the matrices' smaller side, their rank and the most it can be, the percent
    of singular values that are below 0.1 and that such a rank leaves at zero, the largest by role; and its versions.
    """
    ranks = counts.of_runs(runs)
    by_run = ranks.groupby("run")
    updates = by_run.agg(
        matrices=("matrix", "size"),
        side=("total", "min"),
        rank_low=("rank", "min"),
        rank_high=("rank", "max"),
        ceiling_low=("ceiling", "min"),
        ceiling_high=("ceiling", "max"),
    )
    totals = by_run[["below", "ceiling", "total"]].sum()
    updates["below_percent"] = 100 * totals["below"] / totals["total"]
    updates["zero_percent"] = 100 * (1 - totals["ceiling"] / totals["total"])
    largest = spectra.of_runs(runs).groupby(["run", "role"])["sigma"].max().unstack().add_prefix("largest_")
    made_with = [RunFolder(path).environment for path in runs["path"]]
    versions = {name: [facts.get(name) for facts in made_with] for name in ("python", "torch", "threads")}
    found = runs[[*ABOUT, "step", "state", "training.reference_step"]].assign(**versions)
    return found.join(updates, on="run").join(largest, on="run")


def main(arguments: Sequence[str]) -> None:
    """Write the CSV of some runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders of them")
    parser.add_argument("--csv", type=Path, required=True, help="the file to write")
    given = parser.parse_args(arguments)
    try:
        output.write_csv(given.csv, of_runs(load_runs(given.runs)))
    except BadInput as error:
        parser.error(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
