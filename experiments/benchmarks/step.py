"""What one optimizer step costs beside its peers: time, memory, and how near it is to what the machine can do.

    python -m experiments.benchmarks.step   # half an hour of one core, 6 GB of memory
    python -m experiments.benchmarks.step --only step --precision bf16-autocast --ranks 128 --repeats 3
    python -m experiments.benchmarks.step --size 350M --vocabulary 32000 --ranks 64 128 256 --micro-batch 24 \\
        --precision bf16-autocast --device cuda --only step memory

`full` and `relora` are this project's own steps, without a restart; peers.py has the others. All sides train all
that their method trains, with fused AdamW and clipping, from the same weights and factors on the same batches of
random tokens. They are timed in one process, in turns, one step of each after warm-up steps: medians, and the
distance of the quartiles as a share of it. On a CPU it is CPU time. Losses of every round and gradients before the
first step have to agree with ours (but with dropout); the largest differences are in the table. The cases:
step        all sides on two blocks of 350M's shape
vocabulary  full rank on 60M with 32000 tokens, where the loss counts for more
memory      the peak of each side of `step`, in a process of its own, above that after imports
loop        what the trainer's loop takes beside a bare loop of the same updates, on a tiny model

`MFU` is (6·N·T + 12·layers·T·sequence·hidden) / seconds / peak: N the entries of the blocks' matrices and the head,
T the tokens of a step, peak the rate of a large square product of the same dtype in the same turns. `roofline` is the
least time that the step's work takes, as a share of what it took: its products at that rate, and reading and writing
weight, gradient and two moments of all that is trained at the rate of a large copy. Limits count for the shapes,
tokens, clock and one thread that are the default. Exits with 1 where one is not held.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from experiments.benchmarks import loop, peers, roofline, sides, training
from experiments.benchmarks.sides import AGREE_LOSS, Begun, Side
from relora_lab import process
from relora_lab.data import Corpus

# Ours as a share of the peer's, at most, by precision; of the loop, milliseconds a step that ours takes more.
LIMITS: dict[tuple[str, str, str], dict[str, float]] = {
    ("step", "relora 128", "full"): {"float32": 0.94, "bf16-autocast": 0.88},
    ("step", "relora 256", "full"): {"float32": 1.05, "bf16-autocast": 1.00},
    ("step", "relora 512", "full"): {"float32": 1.20, "bf16-autocast": 1.20},
    ("step", "relora 128", "peft 128"): {"float32": 0.95, "bf16-autocast": 0.90},
    ("step", "relora 256", "peft 256"): {"float32": 0.95, "bf16-autocast": 0.90},
    ("step", "full", "transformers"): {"float32": 1.00, "bf16-autocast": 1.00},
    ("vocabulary", "full", "transformers"): {"bf16-autocast": 0.97},
    ("memory", "relora 128", "full"): {"bf16-autocast": 0.90},
    ("memory", "relora 256", "full"): {"bf16-autocast": 1.00},
    ("memory", "relora 128", "peft 128"): {"bf16-autocast": 0.90},
    ("memory", "relora 256", "peft 256"): {"bf16-autocast": 0.90},
    ("loop", "trainer", "bare loop"): {"float32": 1.0},
}
CASES = ("step", "vocabulary", "memory", "loop")
BLOCKS: tuple[dict[str, Any], int] = {"size": "350M", "layers": 2}, 1024
SHAPES = {"step": BLOCKS, "vocabulary": ({"size": "60M"}, 32000), "memory": BLOCKS}  # model, vocabulary
SEQUENCE, MICRO_BATCH, THREADS = 256, 8, 1
RANKS = (128, 256, 512)
COLUMNS = ("seconds", "spread", "tokens/s", "peak MiB", "MFU", "roofline", "loss off", "gradient off")
FORMS = {"seconds": ".4g", "tokens/s": ",.0f", "peak MiB": ".1f", "loss off": ".0e", "gradient off": ".0e"}

Row = dict[str, Any]


def shape(case: str, given: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """Model and vocabulary of a case."""
    model, vocabulary = SHAPES[case]
    return {"size": given.size} if given.size else model, given.vocabulary or vocabulary


def corpus(case: str, given: argparse.Namespace, folder: Path) -> Corpus:
    """Random tokens for 200 steps."""
    return training.random_text(folder, shape(case, given)[1], 200 * given.micro_batch * given.sequence)


# ---- time


def rounds(
    running: dict[Side, Begun], given: argparse.Namespace, precision: str
) -> tuple[dict[str, list[float]], dict[Side, float]]:
    """Seconds of each side's steps and of the yardsticks, in turns; the largest difference of each side's losses."""
    works: dict[str, Callable[[], Any]] = {str(side): begun.step for side, begun in running.items()}
    works |= roofline.yardsticks(precision, given.device)
    times: dict[str, list[float]] = {name: [] for name in works}
    errors: dict[Side, float] = {}
    for _ in range(given.warmup + given.repeats):
        found = {name: training.timed(work, given.device, given.clock) for name, work in works.items()}
        for name, (seconds, _) in found.items():
            times[name].append(seconds)
        losses = {side: float(found[str(side)][1]) for side in running}
        for side, error in sides.loss_errors(losses, precision).items():
            errors[side] = max(error, errors.get(side, 0.0))
    return {name: taken[given.warmup :] for name, taken in times.items()}, errors


def spread(times: list[float]) -> float:
    """The distance of the quartiles, as a share of the median."""
    low, middle, high = np.percentile(times, [25, 50, 75])
    return float((high - low) / middle)


def timed(case: str, given: argparse.Namespace, precision: str, tokens: Corpus) -> dict[Side, Row]:
    """What timing finds of every side that can run."""
    model, vocabulary = shape(case, given)
    able = [side for side in sides.of_case(case, given) if not peers.missing(side.method)]
    runs = {side: sides.settings(side, given, model, precision) for side in able}
    running = {side: sides.begin(side, run, tokens) for side, run in runs.items()}
    gradient = sides.gradient_errors(running, precision)
    times, loss = rounds(running, given, precision)
    rates, table = roofline.rates(times, given.device), {}
    for side, run in runs.items():
        taken = times[str(side)]
        seconds = statistics.median(taken)
        used, of_least = roofline.utilisation(side, run, vocabulary, seconds, rates)
        table[side] = {
            "seconds": seconds,
            "spread": spread(taken),
            "tokens/s": given.micro_batch * given.sequence / seconds,
            "MFU": used,
            "roofline": of_least,
            "loss off": loss.get(side),
            "gradient off": gradient.get(side),
            "times": taken,
            "peak FLOP/s": rates.flops,
            "copy bytes/s": rates.bytes,
        }
    return table


# ---- memory


def peak(side: Side, given: argparse.Namespace, precision: str, tokens: Corpus) -> int:
    """Bytes that training takes at most, in this process."""

    def begun(side: Side, model: dict[str, Any]) -> Begun:
        return sides.begin(side, sides.settings(side, given, model, precision), tokens)

    small, (model, _) = replace(side, rank=1 if side.rank else None), shape("memory", given)
    return training.peak(lambda: begun(small, {"size": "demo"}).step(), lambda: begun(side, model).step, given.device)


def peak_alone(side: Side, precision: str, arguments: list[str]) -> int:
    """`peak` in a process of its own."""
    return training.peak_alone(__spec__.name, arguments, asdict(side) | {"precision": precision})


# ---- the tables


def held_to(case: str, given: argparse.Namespace) -> bool:
    """Do the limits count?"""
    if (given.clock, given.device, given.threads) != ("cpu", "cpu", THREADS):
        return False
    if case == "loop":
        return True
    return (shape(case, given), given.sequence, given.micro_batch) == (SHAPES[case], SEQUENCE, MICRO_BATCH)


def comparison(
    case: str, given: argparse.Namespace, precision: str, ours: str, peer: str, found: float | None
) -> Row:
    """What is printed of ours beside a peer. `found` is None where one of them was not run."""
    limit = LIMITS.get((case, ours, peer), {}).get(precision) if held_to(case, given) else None
    verdict = None if limit is None or found is None else "ok" if found <= limit else "over"
    about = {"case": case, "precision": precision, "ours": ours, "peer": peer, "unit": "ms" if case == "loop" else ""}
    return about | {"found": found, "limit": limit, "verdict": verdict or peers.missing(peer.split()[0])}


def compared(case: str, given: argparse.Namespace, precision: str, table: dict[Side, Row], column: str) -> list[Row]:
    """The ratios of a column."""
    found = []
    for ours, peer in sides.pairs(case, given):
        of_ours, of_peer = table[ours][column], table[peer][column]
        ratio = None if of_ours is None or of_peer is None else of_ours / of_peer
        found.append(comparison(case, given, precision, str(ours), str(peer), ratio))
    return found


def of_sides(
    case: str, given: argparse.Namespace, precision: str, arguments: list[str], folder: Path
) -> tuple[list[Row], list[Row]]:
    """A row a side, and the ratios. The sides of `step` are those of `memory` too."""
    table: dict[Side, Row] = {
        side: {"case": case, "precision": precision, "side": str(side), **dict.fromkeys(COLUMNS)}
        | {"note": peers.missing(side.method)}
        for side in sides.of_case(case, given)
    }
    ratios = []
    if case in given.only:
        for side, found in timed(case, given, precision, corpus(case, given, folder)).items():
            table[side] |= found
        ratios += compared(case, given, precision, table, "seconds")
    if case == "step" and "memory" in given.only:
        for side, row in table.items():
            row["peak MiB"] = None if row["note"] else peak_alone(side, precision, arguments) / 2**20
        ratios += compared("memory", given, precision, table, "peak MiB")
    return list(table.values()) if ratios else [], ratios


def rows(given: argparse.Namespace, arguments: list[str], folder: Path) -> tuple[list[Row], list[Row]]:
    """A row a side of every case, and a row a limit."""
    table: list[Row] = []
    ratios: list[Row] = []
    for precision, case in product(given.precision, ("step", "vocabulary")):
        # The loss is the same work in both precisions: one of them is enough for `vocabulary`.
        if case == "step" or precision == "bf16-autocast":
            found = of_sides(case, given, precision, arguments, folder)
            table, ratios = table + found[0], ratios + found[1]
    if "loop" in given.only:
        ratios.append(comparison("loop", given, "float32", "trainer", "bare loop", loop.overhead(given, folder)))
    return table, ratios


def show(table: list[Row], ratios: list[Row]) -> None:
    """The sides, and below them what is compared."""
    cells = "  ".join(f"{{{name}:>12}}" for name in COLUMNS)
    shown(table, f"{{case:10}}  {{precision:13}}  {{side:20}}  {cells}  {{note}}")
    print()
    shown(ratios, "{case:10}  {precision:13}  {ours:20}  {peer:20}  {found:>6}  {unit:2}  {limit:>5}  {verdict}")


def shown(table: list[Row], form: str) -> None:
    """The rows, below their columns' names."""
    if table:
        print(form.format(**{name: name for name in table[0]}).rstrip())
    for row in table:
        print(form.format(**{name: text(value, FORMS.get(name, ".3f")) for name, value in row.items()}).rstrip())


def numbers(table: list[Row], ratios: list[Row]) -> list[Row]:
    """Both tables as one, a row a number: what a side takes, and ours beside a peer."""
    of_sides = [
        {key: row[key] for key in ("case", "precision", "side")} | {"quantity": name, "found": row[name]}
        for row in table
        for name in COLUMNS
    ]
    of_pairs = [
        {"case": row["case"], "precision": row["precision"], "side": row["ours"], "peer": row["peer"]}
        | {"quantity": row["unit"] or "ratio", "found": row["found"], "limit": row["limit"]}
        for row in ratios
    ]
    return [row for row in [*of_pairs, *of_sides] if row["found"] is not None]


def text(value: Any, form: str) -> str:
    """A cell of a table."""
    return "–" if value is None else format(value, form) if isinstance(value, float) else str(value)


# ---- the command


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="cases (default: all)")
    parser.add_argument("--size", help="a size of sizes.py, instead of each case's own")
    parser.add_argument("--vocabulary", type=int, help="tokens that there are, instead of each case's own")
    parser.add_argument("--sequence", type=int, default=SEQUENCE, help="tokens in an example")
    parser.add_argument("--micro-batch", type=int, default=MICRO_BATCH, help="examples in a step")
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    parser.add_argument("--precision", nargs="+", choices=list(AGREE_LOSS), default=list(AGREE_LOSS))
    parser.add_argument("--compile", action="store_true", help="time our models compiled too")
    parser.add_argument("--clock", choices=("cpu", "wall"), help="default: cpu on a CPU, wall on a GPU")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--warmup", type=int, default=2, help="turns before the first that counts")
    parser.add_argument("--repeats", type=int, default=7, help="turns that count")
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--csv", type=Path, help="a CSV file, a row a number")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    given.clock = given.clock or training.own_clock(given.device)
    if given.clock == "cpu" and given.device != "cpu":
        parser.error("--clock cpu does not see what a GPU does")
    return given


def main(arguments: list[str]) -> int:
    """Print the tables, with --out and --csv in files too; 1 if a limit is not held, 2 without the device."""
    given = parse(arguments)
    if given.device != "cpu" and not torch.cuda.is_available():
        print(f"--device {given.device}: torch finds no GPU here", file=sys.stderr)
        return 2
    with TemporaryDirectory() as folder, process.threads(given.threads):
        if given.peak_of:
            of = json.loads(given.peak_of)
            precision, tokens = of.pop("precision"), corpus("memory", given, Path(folder))
            print(peak(Side(**of), given, precision, tokens))
            return 0
        table, ratios = rows(given, arguments, Path(folder))
    show(table, ratios)
    if given.out:
        about = {k: v for k, v in vars(given).items() if k not in ("out", "csv", "peak_of")}
        found = {"settings": about, "machine": training.machine(given.device), "rows": table, "limits": ratios}
        given.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    if given.csv:
        from experiments import measured  # pandas, which would be in what a peak begins from

        measured.write(given.csv, numbers(table, ratios), given.device, repeats=given.repeats)
    return int(any(row["verdict"] == "over" for row in ratios))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
