"""What training holds: weights, and what autograd keeps of a batch. Numbers only, no torch."""

from dataclasses import asdict, astuple, dataclass

from relora_lab import sizes
from relora_lab.methods._options import LowRankOptions, Options
from relora_lab.sizes import Size

GIB = 2**30
# Bytes of a weight and of what a matrix product reads and writes, by training.precision.
PRECISIONS = {"float32": (4, 4), "bf16-autocast": (4, 2), "bf16": (2, 2)}
STATE_BYTES = {"float32": 4, "bf16": 2}
QUANTISED = {"int8": 1 + 4 / 64, "nf4": 1 / 2 + 4 / 64}  # a weight's code and its part of a block's float32 scale


@dataclass(frozen=True)
class Cells:
    """What is alive at one moment, in bytes. `extra` is what lives shorter than a micro-batch."""

    param: float = 0
    grad: float = 0
    os: float = 0
    act: float = 0
    extra: float = 0

    @property
    def total(self) -> float:
        """The sum."""
        return sum(astuple(self))

    def in_gib(self) -> dict[str, float]:
        """The cells and `total` in GiB."""
        return {name: value / GIB for name, value in (*asdict(self).items(), ("total", self.total))}


def largest_tensor(size: Size, vocab_size: int) -> int:
    """Entries of the largest tensor of weights."""
    return max(vocab_size * size.hidden, *(m.rows * m.cols for m in sizes.matrices(size)))


def weight_bytes(method: Options, size: Size, vocab_size: int, width: int) -> float:
    """Bytes of all weights at `width` bytes each; frozen matrices as they are held."""
    if not isinstance(method, LowRankOptions):
        return width * method.trained(size, vocab_size)
    frozen = sum(m.rows * m.cols for m in sizes.matrices(size))
    return width * method.trained(size, vocab_size) + frozen * (
        QUANTISED[method.quantise] if method.quantise else width
    )


def saved(
    method: Options, size: Size, vocab_size: int, rows: int, length: int, precision: str, checkpointing: bool = False
) -> float:
    """Bytes that autograd keeps of a batch (rows, length) for the backward pass, and that are no weights.

    Counted from transformers' LLaMA with sdpa and the loss of objective.py; equal to what saved-tensor hooks see
    (tests/test_memory.py). With gradient checkpointing the blocks keep their inputs alone.
    """
    tokens, h = rows * length, size.hidden
    weight, compute = PRECISIONS[precision]
    block = weight * h if checkpointing else saved_by_block(method, size, weight, compute)
    end = (4 + weight) * h + 4 + compute * h  # the last norm, and what the head reads
    ids = 8 * (tokens + rows * (length - 1))
    rotary = 2 * length * (h // size.heads) * weight  # cos and sin
    log_softmax = 4 * vocab_size * rows * (length - 1)  # in float32, of every predicted token
    copies = 0 if checkpointing else autocast_copies(method, size, vocab_size, precision)
    return tokens * (size.layers * block + end) + ids + rotary + log_softmax + copies


def saved_by_block(method: Options, size: Size, weight: int, compute: int) -> int:
    """Bytes that one block keeps for each token."""
    h, i = size.hidden, size.intermediate
    norms = 2 * ((4 + weight) * h + 4)  # a float32 input, the normalised vector, 1/rms
    # What q, k, v and gate, up read: one tensor, but autocast casts it for each of them.
    inputs = (2 if weight == compute else 5) * compute * h
    attention = 4 * compute * h + 4 * size.heads  # q, k, v, what comes out, and float32 logsumexp
    mlp = 4 * compute * i  # gate, silu(gate), up, their product
    if not isinstance(method, LowRankOptions):
        return norms + inputs + attention + mlp
    inside = 7 * compute * method.rank  # xAᵀ
    direction = compute * (5 * h + 2 * i) if method.rescales else 0  # x(W + s·B·A)ᵀ before m/n
    return norms + inputs + attention + mlp + inside + direction


def autocast_copies(method: Options, size: Size, vocab_size: int, precision: str) -> int:
    """Bytes of the bfloat16 copies that autocast makes of the matrices it multiplies with."""
    if precision != "bf16-autocast":
        return 0
    matrices = list(sizes.matrices(size))
    entries = vocab_size * size.hidden
    if isinstance(method, LowRankOptions):
        entries += sum(method.rank * (m.rows + m.cols) for m in matrices)
    if not (isinstance(method, LowRankOptions) and method.quantise):
        entries += sum(m.rows * m.cols for m in matrices)
    return 2 * entries
