"""What a step cannot do without, and what the machine can do: floating-point operations, bytes, and their rates."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from experiments.benchmarks.sides import Side
from relora_lab import sizes, work
from relora_lab.settings import RunConfig

PRODUCT = {"cpu": 2048, "cuda": 8192}  # rows of the square product that gives the peak rate
COPIED = 2**26  # numbers in the copy that gives the bandwidth: far more than a cache holds


@dataclass(frozen=True)
class Rates:
    """What the machine can do: floating-point operations and bytes a second."""

    flops: float
    bytes: float


def matrix_flops(method: str, m: int, n: int, r: int | None, tokens: int) -> int:
    """Of the products of one wrapped matrix (m, n), forward and backward.

    Low-rank peers: y and the gradient of x with W, and six thin products.
    """
    if r is None or method == "relora":
        return work.matrix_flops(m, n, r, tokens)
    return 4 * tokens * m * n + 6 * tokens * r * (m + n)


def step_flops(side: Side, run: RunConfig, vocabulary: int) -> int:
    """Of all products: the blocks' matrices, attention, the head."""
    shape, tokens = run.model.shape, run.data.batch_size * run.data.sequence_length
    blocks = sum(matrix_flops(side.method, of.rows, of.cols, side.rank, tokens) for of in sizes.matrices(shape))
    return blocks + sum(work.other_flops(shape, tokens, run.data.sequence_length, vocabulary))


def optimizer_bytes(side: Side, run: RunConfig, vocabulary: int) -> int:
    """Weight, gradient and two moments of all that is trained, four bytes each, read and written."""
    _, trained = sizes.count_parameters(run.model.shape, rank=side.rank, vocab_size=vocabulary)
    return 2 * 4 * 4 * trained


def utilisation(side: Side, run: RunConfig, vocabulary: int, seconds: float, rates: Rates) -> tuple[float, float]:
    """Model FLOP utilisation, which counts what full-rank training needs, and the share of the roofline."""
    model = step_flops(Side("full"), run, vocabulary) / rates.flops
    least = step_flops(side, run, vocabulary) / rates.flops + optimizer_bytes(side, run, vocabulary) / rates.bytes
    return model / seconds, least / seconds


def yardsticks(precision: str, device: str) -> dict[str, Callable[[], Any]]:
    """A large square product and a large copy."""
    rows, dtype = PRODUCT[torch.device(device).type], torch.bfloat16 if precision != "float32" else torch.float32
    left, right = torch.randn(2, rows, rows, device=device).to(dtype)
    product = torch.empty_like(left)
    source, target = torch.zeros(2, COPIED, device=device)
    return {"product": lambda: torch.mm(left, right, out=product), "copy": lambda: target.copy_(source)}


def rates(times: dict[str, list[float]], device: str) -> Rates:
    """From the times of the yardsticks."""
    product, copy = (statistics.median(times[name]) for name in ("product", "copy"))
    return Rates(2 * PRODUCT[torch.device(device).type] ** 3 / product, 2 * 4 * COPIED / copy)
