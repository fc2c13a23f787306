"""How long does the report of 200 runs take? Bar: 30 seconds, in a fresh process that has measured nothing before.

    relora-lab demo && python -m experiments.benchmarks.report

The runs are those of a folder again and again: 50 labels of four seeds, of another learning rate and other weights
each. Prints wall and CPU time, the page's size, and with --profile where the time goes; exits 1 above the bar.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tomli_w
from safetensors.torch import load_file, save_file

from relora_lab import manifest
from relora_lab.config import as_table
from relora_lab.runs import RunFolder
from relora_lab.workspace import run_folders

BAR, SEEDS = 30.0, 4


def many(runs: list[RunFolder], count: int, out: Path) -> None:
    """Write `count` run folders: copies that differ in name, seed, learning rate and final weights."""
    for number in range(count):
        source, label = runs[number // SEEDS % len(runs)], number // SEEDS
        name = f"{source.config.method_name}-{label:02d}-seed{number % SEEDS}"
        folder = shutil.copytree(source.path, out / name, ignore=shutil.ignore_patterns("checkpoints"))
        settings = as_table(source.config)
        settings["name"] = name
        settings["training"]["seed"] = number % SEEDS
        settings["optimizer"]["lr"] *= 1 + label / 100
        (folder / "config.toml").write_text(tomli_w.dumps(settings))
        weights = load_file(folder / "final" / "model.safetensors")
        save_file({key: W * (1 + number / 10_000) for key, W in weights.items()}, folder / "final/model.safetensors")
        manifest.record(folder, "config.toml", "final")


def main() -> int:
    """Make the runs, then time `relora-lab report`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", type=Path, default=Path("runs/demo"), help="a folder of finished runs")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, out = Path(scratch) / "runs", Path(scratch) / "report"
        many(run_folders(given.of), given.runs, folder)
        profile = ["-m", "cProfile", "-s", "cumulative"] if given.profile else []
        command = [sys.executable, *profile, "-m", "relora_lab", "report", str(folder), "--out", str(out)]
        began, environment = time.perf_counter(), {**os.environ, "RELORA_LAB_CACHE": f"{scratch}/cache"}
        done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
        wall, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        size = (out / "report.html").stat().st_size / 2**20
    if given.profile:
        print("\n".join(done.stdout.splitlines()[:90]))
    cpu = used.ru_utime + used.ru_stime
    print(f"report of {given.runs} runs: {wall:.1f} s, CPU {cpu:.1f} s, page {size:.1f} MiB (bar: {BAR:.0f} s)")
    return int(wall > BAR)


if __name__ == "__main__":
    sys.exit(main())
