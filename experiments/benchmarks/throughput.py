"""Throughput of full-rank training, GaLore and ReLoRA by rank and micro-batch: the cells of P2's Table 2.

    python -m experiments.benchmarks.throughput        # at a size that a laptop trains; P2's own on a GPU:
    python -m experiments.benchmarks.throughput --size 350M --micro-batch 24 --sequence 256 --device cuda \\
        --precision bf16-autocast --vocabulary 32000

An example is a sequence; a step is a whole optimizer step: 6 of the smaller micro-batch or 3 of the larger, as each
of P2's devices had. Cells are timed in one process, in turns, one step of each, after warm-up steps: medians. On a
CPU, it is CPU time of one thread, which a busy machine disturbs least. Peak memory is that of a process of the cell's
own. `of full` is the ratio to full-rank training at the smaller micro-batch; P2's is beside it, as printed (V100,
350M, micro-batch 24 and 48). `adjusted` counts the third of a run that is a full-rank warm start:
1/(f/T_full + (1 − f)/T), f = 0.33 (P1 Table 7).
"""

import argparse
import json
import statistics
import sys
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from experiments.benchmarks import training
from relora_lab import process, sizes
from relora_lab.data import Corpus
from relora_lab.settings import RunConfig
from relora_lab.update import Update, update

WARM_START = 0.33
GAP = 50  # P2's updates from one refresh of GaLore's projectors to the next
ACCUMULATED = 6  # of the smaller micro-batch: P2's 1152 sequences on 8 devices are 6 × 24, or 3 × 48, on each

Step = Callable[[], Update]


@dataclass(frozen=True)
class Cell:
    """What is timed: a method at d/r (None: no rank) with so many sequences a step."""

    method: str
    ratio: int | None
    micro_batch: int


def printed() -> dict[Cell, float]:
    """P2's Table 2: cells and their examples a second."""
    text = files("experiments").joinpath("papers/approximations.toml").read_text(encoding="utf-8")
    (table,) = (table for table in tomllib.loads(text)["tables"] if table["table"] == "Table 2")
    return {Cell(row[0], row[2] or None, row[3]): row[4] for row in table["rows"].values()}


def cells(micro_batch: int) -> list[Cell]:
    """P2's, with `micro_batch` in place of its 24 and the double in place of its 48."""
    smallest = min(cell.micro_batch for cell in printed())
    return [replace(cell, micro_batch=micro_batch * cell.micro_batch // smallest) for cell in printed()]


def settings(cell: Cell, given: argparse.Namespace, gap: int) -> RunConfig:
    """The run of a cell: no restart comes, and GaLore refreshes every `gap` updates."""
    methods: dict[str, dict[str, Any]] = {
        "full": {},
        "galore": {"gap": gap, "scale": 1.0},
        "relora": {"restart_every": 10**6},
    }
    method = {"name": cell.method, **methods[cell.method]}
    if cell.ratio:
        method["rank"] = sizes.resolve(given.size).hidden // cell.ratio
    batch = ACCUMULATED * given.micro_batch
    return training.settings(given, {"size": given.size}, method, given.precision, batch, cell.micro_batch)


def begin(cell: Cell, given: argparse.Namespace, corpus: Corpus, gap: int = 10**6) -> Step:
    """The steps of a cell's model."""
    return partial(update, *training.begin(settings(cell, given, gap), corpus))


def speeds(given: argparse.Namespace, corpus: Corpus) -> dict[Cell, float]:
    """Examples a second of every cell, timed in turns. GaLore's step has its share of a refresh every GAP steps."""
    running = {cell: begin(cell, given, corpus) for cell in cells(given.micro_batch)}
    (galore,) = (cell for cell in running if cell.method == "galore")
    refreshing = begin(galore, given, corpus, gap=1)
    for step in [*running.values(), refreshing] * given.warmup:
        step()
    times: dict[Cell, list[float]] = {cell: [] for cell in running}
    with_refresh = []
    for _ in range(given.steps):
        for cell, step in running.items():
            times[cell].append(seconds(step, given.device))
        with_refresh.append(seconds(refreshing, given.device))
    taken = {cell: statistics.median(found) for cell, found in times.items()}
    taken[galore] += max(0.0, statistics.median(with_refresh) - taken[galore]) / GAP
    return {cell: ACCUMULATED * given.micro_batch / median for cell, median in taken.items()}


def seconds(step: Step, device: str) -> float:
    """One optimizer step."""
    return training.timed(step, device, training.own_clock(device))[0]


def peak(cell: Cell, given: argparse.Namespace, corpus: Corpus) -> int:
    """Bytes that training takes at most, in this process."""
    small = argparse.Namespace(**{**vars(given), "size": "demo"})
    return training.peak(
        lambda: begin(Cell("full", None, 1), small, corpus)(), lambda: begin(cell, given, corpus), given.device
    )


def peak_alone(cell: Cell, arguments: list[str]) -> int:
    """`peak` in a process of its own."""
    return training.peak_alone(__spec__.name, arguments, asdict(cell))


def rows(given: argparse.Namespace, arguments: list[str], corpus: Corpus) -> list[dict[str, Any]]:
    """A row a cell."""
    found = speeds(given, corpus)
    full = found[Cell("full", None, given.micro_batch)]
    paper = list(printed().values())
    table = []
    for theirs, (cell, speed) in zip(paper, found.items(), strict=True):
        adjusted = 1 / (WARM_START / full + (1 - WARM_START) / speed) if cell.method == "relora" else speed
        table.append(
            {
                "method": cell.method,
                "d/r": cell.ratio,
                "micro-batch": cell.micro_batch,
                "examples/s": speed,
                "tokens/s": speed * given.sequence,
                "of full": speed / full,
                "P2 of full": theirs / paper[0],
                "adjusted": adjusted,
                "peak MiB": peak_alone(cell, arguments) / 2**20,
            }
        )
    return table


def main(arguments: list[str]) -> None:
    """Print the table; with --out as JSON too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="20M")
    parser.add_argument("--sequence", type=int, default=128, help="tokens in an example")
    parser.add_argument("--micro-batch", type=int, default=4, help="the smaller of the two")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the first that counts")
    parser.add_argument("--steps", type=int, default=10, help="steps that count")
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    with TemporaryDirectory() as folder, process.threads(1):
        corpus = training.random_text(Path(folder), given.vocabulary, 200 * given.micro_batch * given.sequence)
        if given.peak_of:
            print(peak(Cell(**json.loads(given.peak_of)), given, corpus))
            return
        table = rows(given, arguments, corpus)
    forms = {"tokens/s": ",.0f", "of full": ".3f", "P2 of full": ".3f", "peak MiB": ".1f"}
    print("  ".join(f"{name:>11}" for name in table[0]))
    for row in table:
        texts = (
            format(value, forms.get(name, ".2f")) if isinstance(value, float) else str(value or "–")
            for name, value in row.items()
        )
        print("  ".join(f"{text[:11]:>11}" for text in texts))
    if given.out:
        about = {**{k: v for k, v in vars(given).items() if k not in ("out", "peak_of")}, "torch": torch.__version__}
        given.out.write_text(json.dumps({"settings": about, "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
