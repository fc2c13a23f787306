"""What training holds all the time. Numbers only, no torch."""

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
