"""What a cell leaves in a folder and asks of its file system: python -m experiments.benchmarks.one_cell

Trains a warm start and a ReLoRA cell that begins with it, under strace: the demo's model, since sizes do not change
what is counted. Prints the files and bytes left and the calls made by where they are: the text's tokens and the grid,
the stage, the cell. --updates and --restarts are the cell's.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

CALLS = {
    "open": "open openat creat",
    "look": "stat lstat newfstatat statx access faccessat faccessat2 readlink getdents64",
    "change": "mkdir mkdirat rename renameat renameat2 link linkat unlink unlinkat rmdir chmod fchmod fchmodat",
    "sync": "fsync fdatasync",
    "lock": "flock",
    "write": "write pwrite64 writev",
}
KIND = {call: kind for kind, calls in CALLS.items() for call in calls.split()}
SETTINGS = """
model.size = "demo"
optimizer.lr = 1e-3
[data]
sequence_length = 32
batch_size = 2
[training]
steps = {steps}
warm_start = 10
eval_tokens = 64
[method]
name = "relora"
rank = 2
restart_every = {every}
restart_warmup = 2
"""


def main(arguments: list[str] | None = None) -> int:
    """Train, count, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--restarts", type=int, default=3)
    given = parser.parse_args(arguments)
    if not shutil.which("strace"):
        parser.error("needs strace")
    with tempfile.TemporaryDirectory() as folder:
        runs, calls = Path(folder) / "runs", Path(folder) / "calls"
        (Path(folder) / "cell.toml").write_text(
            SETTINGS.format(steps=10 + given.updates, every=-(-given.updates // (given.restarts + 1)))
        )
        train = [sys.executable, "-m", "relora_lab", "train", f"{folder}/cell.toml", "--out", str(runs / "cell")]
        traced = ["strace", "-f", "-y", "-e", f"trace={','.join(KIND)}", "-o", str(calls)]
        subprocess.run([*traced, *train], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        report(_calls(calls, runs), _left(runs), given.updates)
    return 0


def report(calls: dict[str, Counter[str]], left: dict[str, list[int]], updates: int) -> None:
    """A line for each place: files and bytes left, calls by kind."""
    print(f"{updates:,} updates" + "".join(f"{name:>10}" for name in ("files", "MB", *CALLS)))
    for place, sizes in left.items():
        counts = "".join(f"{calls[place][kind]:>10,}" for kind in CALLS)
        print(f"{place:<13}{len(sizes):>10}{sum(sizes) / 1e6:>10.1f}{counts}")


def _place(path: str) -> str:
    return "stage" if "/.stages/" in path else "cell" if "/cell" in path else "text, grid"


def _calls(log: Path, runs: Path) -> dict[str, Counter[str]]:
    """How often each kind of call was made below `runs`, by place."""
    found: dict[str, Counter[str]] = {"text, grid": Counter(), "stage": Counter(), "cell": Counter()}
    for line in log.read_text(errors="replace").splitlines():
        call = re.match(r"\d+ +(\w+)\(", line)
        path = re.search(rf"{re.escape(str(runs))}[^\">]*", line)
        if call and path:
            found[_place(path[0])][KIND[call[1]]] += 1
    return found


def _left(runs: Path) -> dict[str, list[int]]:
    """Sizes of the files below `runs`, by place."""
    found: dict[str, list[int]] = {"text, grid": [], "stage": [], "cell": []}
    for path in runs.rglob("*"):
        if path.is_file():
            found[_place(str(path))].append(path.stat().st_size)
    return found


if __name__ == "__main__":
    sys.exit(main())
