"""The papers' model sizes: shapes, wrapped matrices and parameter counts. Numbers only, no torch.

Sources: ReLoRA (ICLR 2024) Table 1 and the control sizes behind Table 2. Two entries differ from the print:
250M has intermediate 2560 (10/3 of the width; the paper's 8/3 would give 219M), and 1.3B has 32 heads and
24 layers (the paper's columns are swapped: 2048 is no multiple of 24).
"""

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass

from relora_lab.errors import BadInput


@dataclass(frozen=True)
class Size:
    """A LLaMA's shape; `init_std` is the standard deviation its weights start with."""

    hidden: int
    intermediate: int
    heads: int
    layers: int
    init_std: float = 0.02


@dataclass(frozen=True)
class Matrix:
    """One linear map of a transformer block: weight (rows, cols) = (out, in)."""

    name: str
    layer: int
    role: str
    rows: int
    cols: int


# At a width of 48 the usual 0.02 leaves the activations far too small.
SIZES = {
    "demo": Size(48, 128, 4, 2, init_std=0.5 / math.sqrt(48)),
    "demo-control": Size(24, 72, 4, 2, init_std=0.5 / math.sqrt(24)),
    "9M": Size(128, 352, 4, 4),
    "20M": Size(256, 688, 4, 4),
    "35M": Size(384, 1024, 8, 6),
    "40M": Size(416, 1024, 8, 8),
    "60M": Size(512, 1376, 8, 8),
    "71M": Size(512, 1368, 8, 12),
    "99M": Size(512, 1368, 16, 21),
    "130M": Size(768, 2048, 12, 12),
    "250M": Size(768, 2560, 16, 24),
    "350M": Size(1024, 2736, 16, 24),
    "1.3B": Size(2048, 5461, 32, 24),
    "7B": Size(4096, 11008, 32, 32),  # LLaMA's (Touvron et al. 2023, Table 2)
}

# The full-rank preset nearest in size to what a low-rank run of that size trains (P1 Table 2, "Control").
CONTROLS = {
    "demo": "demo-control",
    "60M": "40M",
    "130M": "71M",
    "250M": "99M",
    "350M": "130M",
    "1.3B": "250M",
}


def resolve(name: str) -> Size:
    """The size of that name; "control:60M" is the control of 60M. Raises BadInput with the nearest name."""
    table: dict[str, Size] = SIZES | {f"control:{of}": SIZES[control] for of, control in CONTROLS.items()}
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"one of {', '.join(table)}"
    raise BadInput(f"model.size: unknown size '{name}'; {hint}")


def matrices(size: Size | str) -> Iterator[Matrix]:
    """The seven linear maps of each block, in the model's order: what low-rank methods wrap."""
    size = resolve(size) if isinstance(size, str) else size
    h, i = size.hidden, size.intermediate
    shapes = {f"self_attn.{role}_proj": (h, h) for role in "qkvo"}
    shapes |= {"mlp.gate_proj": (i, h), "mlp.up_proj": (i, h), "mlp.down_proj": (h, i)}
    for layer in range(size.layers):
        for path, (rows, cols) in shapes.items():
            role = path.split(".")[1].removesuffix("_proj")
            yield Matrix(f"model.layers.{layer}.{path}", layer, role, rows, cols)


def count_parameters(size: Size | str, *, rank: int | None = None, vocab_size: int = 32000) -> tuple[int, int]:
    """(total, trainable) parameters of a model with an untied head.

    Total counts the plain model. Trainable is the same at full rank; with a `rank` it is embeddings, head,
    norms and the factors A and B of every wrapped matrix (P1 Table 2, numbers in brackets).
    """
    size = resolve(size) if isinstance(size, str) else size
    rest = 2 * vocab_size * size.hidden + (2 * size.layers + 1) * size.hidden
    wrapped = list(matrices(size))
    total = rest + sum(m.rows * m.cols for m in wrapped)
    if rank is None:
        return total, total
    return total, rest + sum(rank * (m.rows + m.cols) for m in wrapped)
