"""What singular values of ΔW cost beside other ways to get them: time, memory, and the error on exact zeros.

    python -m experiments.benchmarks.spectrum   # some minutes, 6 GB in the temporary folder
    python -m experiments.benchmarks.spectrum --only svdvals factored --repeats 1
    python3 -m venv ~/ww && ~/ww/bin/pip install weightwatcher torch
    python -m experiments.benchmarks.spectrum --only weightwatcher --weightwatcher ~/ww/bin/python

Every side is timed in turns: medians of CPU seconds, one thread each, files in the page cache. The cases:
svdvals        `compare` of two float32 checkpoints of 60M's shapes, reading included, against the shortest loop:
               read the same matrices, torch.linalg.svdvals of each difference
weightwatcher  the same against WeightWatcher's analysis of the difference of two models, in a process of its own,
               reading included; by default it fits power laws too
notebook       the same against a loop of full np.linalg.svd over two files read whole
torch-svd      the same with torch.linalg.svd, which is faster: our eigenvalues alone take more than 0.15 of its time,
               so its limit is wider
shapes         `singular_values` against svdvals in float32: a matrix of each shape that 1.3B's blocks have, times how
               often a block has it
factored       `factored_singular_values` of an update's factors against `singular_values` of the same update, dense
memory         `compare` of two bf16 checkpoints of 1.3B's shapes: peak above that after imports, in MB
Exits with 1 where a limit is not held.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from threadpoolctl import threadpool_limits
from torch import Tensor

from analysis.spectra import compare, factored_singular_values, singular_values
from experiments import measured
from relora_lab import process, sizes

# Ours as a share of the other side's time; of memory, MB (10^6 bytes).
LIMITS = {
    "svdvals": 0.65,
    "weightwatcher": 0.36,
    "notebook": 0.15,
    "torch-svd": 0.30,
    "shapes": 0.40,
    "factored": 0.08,
    "memory": 450.0,
}
PAIR = ("svdvals", "weightwatcher", "notebook", "torch-svd")  # cases that share ours
OWN_SIZE = {"pair": "60M", "shapes": "1.3B", "factored": "130M", "memory": "1.3B", "zeros": "60M"}
VOCABULARY = 32000
STD, MOVED = 0.02, 0.002  # standard deviation of the weights, and of what training added to them
CYCLES = 4
NOT_RUN = "not run (pip install weightwatcher in an environment of its own, pass its python)"
WEIGHTWATCHER = Path(__file__).with_name("weightwatcher_peer.py")

Row = dict[str, Any]
Side = Callable[[], tuple[float, Any]]  # CPU seconds, and the largest singular values that it found


def shapes(size: str) -> dict[str, tuple[int, ...]]:
    """What a checkpoint of that size holds."""
    width = sizes.resolve(size).hidden
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, width)}
    for matrix in sizes.matrices(size):
        block = f"model.layers.{matrix.layer}"
        found |= {f"{block}.{norm}_layernorm.weight": (width,) for norm in ("input", "post_attention")}
        found[f"{matrix.name}.weight"] = (matrix.rows, matrix.cols)
    return found | {"model.norm.weight": (width,), "lm_head.weight": (VOCABULARY, width)}


def wrapped(size: str) -> list[str]:
    """Names of the matrices that are compared, in the model's order."""
    return [f"{matrix.name}.weight" for matrix in sizes.matrices(size)]


def write_pair(folder: Path, size: str, dtype: torch.dtype) -> tuple[Path, Path]:
    """Two safetensors files of random weights, written with one tensor in memory at a time."""
    paths = folder / "start.safetensors", folder / "final.safetensors"
    generator = torch.Generator().manual_seed(0)
    with paths[0].open("wb") as start, paths[1].open("wb") as final:
        for file in (start, final):
            write_header(file, shapes(size), dtype)
        for shape in shapes(size).values():
            weights = STD * torch.randn(shape, generator=generator)
            start.write(raw(weights.to(dtype)))
            final.write(raw(weights.add_(torch.randn(shape, generator=generator), alpha=MOVED).to(dtype)))
    return paths


def write_header(file: BinaryIO, tensors: dict[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    """A safetensors header; the tensors' bytes follow in its order."""
    header, end = {}, 0
    for name, shape in tensors.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        code = {torch.float32: "F32", torch.bfloat16: "BF16"}[dtype]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor."""
    return tensor.view(torch.uint8).numpy().data


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and what it returned."""
    started = time.process_time()
    found = work()
    return time.process_time() - started, found


def compared(start: Path, final: Path) -> np.ndarray:
    """Largest singular values by `compare`."""
    spectra = compare(start, final, workers=1, cache=False).spectra
    return spectra.loc[spectra["index"] == 0, "sigma"].to_numpy()


def svdvals_loop(start: Path, final: Path, names: Sequence[str]) -> list[float]:
    """The shortest loop there is."""
    largest = []
    with safe_open(start, "pt") as before, safe_open(final, "pt") as after:
        for name in names:
            sigma = torch.linalg.svdvals(after.get_tensor(name).float() - before.get_tensor(name).float())
            largest.append(float(sigma[0]))
    return largest


def notebook(start: Path, final: Path, names: Sequence[str], svd: Callable[[Tensor], Any]) -> list[float]:
    """The loop of notebooks: whole files, whole SVDs."""
    before, after = load_file(start), load_file(final)
    return [float(svd(after[name] - before[name])[1][0]) for name in names]


def weightwatcher(python: str, start: Path, final: Path, names: Sequence[str]) -> tuple[str, float, list[float]]:
    """WeightWatcher's version, its CPU seconds and largest singular values, from a process of its own."""
    listed = start.with_name("names.json")
    listed.write_text(json.dumps(list(names)))
    command = [python, str(WEIGHTWATCHER), str(listed), str(start), str(final)]
    ended = subprocess.run(command, check=True, capture_output=True, text=True, cwd=start.parent)
    version, seconds, largest = json.loads(ended.stdout.splitlines()[-1])
    return version, seconds, largest


def medians(sides: dict[str, Side], repeats: int) -> dict[str, float]:
    """CPU seconds of each side, timed in turns. All have to find what `ours` does."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        found = {name: side() for name, side in sides.items()}
        for name, (seconds, largest) in found.items():
            times[name].append(seconds)
            np.testing.assert_allclose(largest, found["ours"][1], rtol=1e-3, err_msg=name)
    return {name: statistics.median(taken) for name, taken in times.items()}


def row(case: str, against: str, ours: float | None, peer: float | None = None, unit: str = "s") -> Row:
    """What is printed of a case. Without a peer, ours itself is held against the limit."""
    ratio = ours / peer if ours is not None and peer else None
    measured = ours if ratio is None else ratio
    verdict = NOT_RUN if measured is None else "ok" if measured <= LIMITS[case] else "over"
    found = {"case": case, "against": against, "ours": ours, "peer": peer, "unit": unit, "ratio": ratio}
    return found | {"limit": LIMITS[case], "verdict": verdict}


def pair(given: argparse.Namespace, folder: Path) -> list[Row]:
    """Two checkpoints, against each of those that `given.only` has."""
    size = given.size or OWN_SIZE["pair"]
    files, names = write_pair(folder, size, torch.float32), wrapped(size)
    peers = {
        "svdvals": "svdvals loop",
        "weightwatcher": "WeightWatcher",
        "notebook": "np.linalg.svd",
        "torch-svd": "torch.linalg.svd",
    }
    sides: dict[str, Side] = {
        "ours": lambda: timed(partial(compared, *files)),
        "svdvals": lambda: timed(partial(svdvals_loop, *files, names)),
        "notebook": lambda: timed(partial(notebook, *files, names, lambda W: np.linalg.svd(W.numpy()))),
        "torch-svd": lambda: timed(partial(notebook, *files, names, torch.linalg.svd)),
    }

    def watched() -> tuple[float, list[float]]:
        version, seconds, largest = weightwatcher(given.weightwatcher, *files, names)
        peers["weightwatcher"] = f"WeightWatcher {version}"
        return seconds, largest

    if given.weightwatcher:
        sides["weightwatcher"] = watched
    found = []
    for case in (case for case in PAIR if case in given.only):
        # Each peer by itself: what another leaves in the allocator is not its doing.
        both = {name: sides[name] for name in ("ours", case) if name in sides}
        taken = medians(both, given.repeats) if case in both else {}
        found.append(row(case, peers[case], taken.get("ours"), taken.get(case)))
    return found


def one_of_each(given: argparse.Namespace) -> list[Row]:
    """One matrix of each shape of a block, times how often a block has it."""
    blocks = sizes.matrices(given.size or OWN_SIZE["shapes"])
    total = {"ours": 0.0, "shapes": 0.0}
    for shape, times in Counter((matrix.rows, matrix.cols) for matrix in blocks if matrix.layer == 0).items():
        delta = MOVED * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        taken = medians(against_svdvals(delta), given.repeats)
        total = {name: sofar + times * taken[name] for name, sofar in total.items()}
    return [row("shapes", "svdvals float32", total["ours"], total["shapes"])]


def against_svdvals(delta: Tensor) -> dict[str, Side]:
    """Both ways to a matrix's singular values."""
    return {
        "ours": lambda: timed(lambda: singular_values(delta)[0]),
        "shapes": lambda: timed(lambda: torch.linalg.svdvals(delta)[0]),
    }


def factored(given: argparse.Namespace) -> list[Row]:
    """The sum of the updates of CYCLES cycles, each of a 24th of the width in rank, against the same sum dense."""
    size = sizes.resolve(given.size or OWN_SIZE["factored"])
    generator = torch.Generator().manual_seed(0)
    rank = size.hidden // 24
    shapes = (size.hidden, rank), (rank, size.intermediate)
    drawn = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(CYCLES)]
    factors = [(B, A, MOVED) for B, A in drawn]
    dense = torch.stack([scale * B @ A for B, A, scale in factors]).sum(0)
    sides: dict[str, Side] = {
        "ours": lambda: timed(lambda: factored_singular_values(factors)[0]),
        "factored": lambda: timed(lambda: singular_values(dense)[0]),
    }
    taken = medians(sides, 5 * given.repeats)  # milliseconds
    return [row("factored", "the same, dense", taken["ours"], taken["factored"])]


def peak(given: argparse.Namespace) -> int:
    """Bytes that comparing two files takes at most, above what this process holds already."""
    match = [f"model.layers.{layer}.*" for layer in range(given.layers or 0)]  # none: all
    process.reset_peak("cpu")
    before = process.peak_bytes("cpu")
    compare(*given.peak_of, match=match, workers=1, cache=False)
    return process.peak_bytes("cpu") - before


def memory(given: argparse.Namespace, folder: Path) -> list[Row]:
    """`peak` in a process of its own, in MB."""
    files = write_pair(folder, given.size or OWN_SIZE["memory"], torch.bfloat16)
    command = [sys.executable, "-m", __spec__.name, "--peak-of", *map(str, files)]
    command += [] if given.layers is None else ["--layers", str(given.layers)]
    found = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return [row("memory", "", found / 1e6, unit="MB")]


def zeros(size: str) -> Row:
    """The largest singular value found where it is exactly zero, relative to σ₁; ΔW is of a quarter of full rank."""
    width = sizes.resolve(size).hidden
    generator = torch.Generator().manual_seed(0)
    rank = width // 4
    # Small integers: their product rounds nowhere.
    B, A = (torch.randint(-8, 9, shape, generator=generator).float() for shape in ((width, rank), (rank, width)))
    found = {"ours": singular_values(B @ A), "svdvals float32": torch.linalg.svdvals(B @ A).numpy()}
    errors = {name: float(sigma[rank:].max() / sigma[0]) for name, sigma in found.items()}
    return {"width": width, "rank": rank, "error": errors}


def rows(given: argparse.Namespace) -> list[Row]:
    """A row a case."""
    found = []
    with TemporaryDirectory() as folder, process.threads(1), threadpool_limits(1):
        medians(against_svdvals(torch.eye(8)), 1)  # libraries
        if set(PAIR) & set(given.only):
            found += pair(given, Path(folder))
        found += one_of_each(given) if "shapes" in given.only else []
        found += factored(given) if "factored" in given.only else []
        found += memory(given, Path(folder)) if "memory" in given.only else []
    return found


def show(table: list[Row], exact: Row) -> None:
    """The table, and a line on exact zeros."""
    form = "{case:13}  {against:20}  {ours:>10}  {peer:>10}  {ratio:>6}  {limit:>5}  {verdict}"
    print(form.format(**{name: name for name in table[0]}))
    for line in table:
        texts = {name: f"{line[name]:.4g} {line['unit']}" for name in ("ours", "peer") if line[name] is not None}
        texts |= {"ratio": f"{line['ratio']:.3f}"} if line["ratio"] is not None else {}
        print(form.format(**{name: "–" if value is None else value for name, value in (line | texts).items()}))
    errors = ", ".join(f"{name} {error:.1e}" for name, error in exact["error"].items())
    print(f"largest error on exact zeros, of σ₁, at width {exact['width']}, rank {exact['rank']}: {errors}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="turns that each side is timed")
    parser.add_argument("--weightwatcher", metavar="PYTHON", help="the python of an environment that has it")
    parser.add_argument("--only", nargs="+", choices=LIMITS, default=list(LIMITS), help="cases (default: all)")
    parser.add_argument("--size", choices=sizes.SIZES, help="for every case, instead of each case's own")
    parser.add_argument("--layers", type=int, help="layers whose memory is measured (default: all)")
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--csv", type=Path, help="a CSV file, a row a case")
    parser.add_argument("--peak-of", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Print the table, with --out and --csv in files too; 1 if a limit is not held."""
    given = parse(arguments)
    if given.peak_of:
        print(peak(given))
        return 0
    table, exact = rows(given), zeros(given.size or OWN_SIZE["zeros"])
    show(table, exact)
    if given.out:
        about = {k: v for k, v in vars(given).items() if k not in ("out", "csv", "peak_of")}
        found = {"settings": about | {"torch": torch.__version__}, "rows": table, "zeros": exact}
        given.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    if given.csv:
        errors = [{"case": "zeros", "against": name, "error": error} for name, error in exact["error"].items()]
        measured.write(given.csv, [*table, *errors], repeats=given.repeats)
    return int(any(line["verdict"] == "over" for line in table))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
