"""The papers' model sizes: shapes, wrapped matrices and parameter counts. Numbers only, no torch.

LLaMA's, and for fine-tuning T5's (Raffel et al. 2020, Section 3.7 of which names small to 3B).

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

    def matrices(self) -> Iterator["Matrix"]:
        """The linear maps of its blocks, in the model's order."""
        h, i = self.hidden, self.intermediate
        shapes = {f"self_attn.{role}_proj": (h, h) for role in "qkvo"}
        shapes |= {"mlp.gate_proj": (i, h), "mlp.up_proj": (i, h), "mlp.down_proj": (h, i)}
        for layer in range(self.layers):
            for path, (rows, cols) in shapes.items():
                role = path.split(".")[1].removesuffix("_proj")
                yield Matrix(f"model.layers.{layer}.{path}", layer, role, rows, cols)

    def others(self, vocab_size: int, outputs: int) -> int:
        """Weights that are none of these: embeddings, a head of so many `outputs`, norms."""
        return (vocab_size + outputs) * self.hidden + (2 * self.layers + 1) * self.hidden


@dataclass(frozen=True)
class T5Size(Size):
    """A T5's shape: `layers` blocks in the encoder and as many in the decoder, heads of `head_width`."""

    head_width: int = 64

    def matrices(self) -> Iterator["Matrix"]:
        """The linear maps of encoder and decoder, in the model's order."""
        h, i, inner = self.hidden, self.intermediate, self.heads * self.head_width
        attention = {role: (h, inner) if role == "o" else (inner, h) for role in "qkvo"}
        kinds = {"SelfAttention": attention, "EncDecAttention": attention}
        kinds["DenseReluDense"] = {"wi": (i, h), "wo": (h, i)}
        for stack, parts in (("encoder", ("SelfAttention", "DenseReluDense")), ("decoder", tuple(kinds))):
            for layer in range(self.layers):
                for number, part in enumerate(parts):
                    for role, (rows, cols) in kinds[part].items():
                        path = f"{stack}.block.{layer}.layer.{number}.{part}.{role}"
                        told = f"{stack}.{role}" if part == "DenseReluDense" else f"{stack}.{part}.{role}"
                        yield Matrix(path, layer, told, rows, cols)

    def others(self, vocab_size: int, outputs: int) -> int:  # noqa: ARG002
        """Embeddings, which are the head too; norms; in each stack a table of relative positions."""
        return (vocab_size + 5 * self.layers + 2) * self.hidden + 2 * T5_BUCKETS * self.heads


@dataclass(frozen=True)
class Matrix:
    """One linear map of a transformer block: weight (rows, cols) = (out, in)."""

    name: str
    layer: int
    role: str
    rows: int
    cols: int


T5_BUCKETS = 32  # of relative positions

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
    "t5-demo": T5Size(64, 128, 4, 2, head_width=16),
    "t5-small": T5Size(512, 2048, 8, 6),
    "t5-base": T5Size(768, 3072, 12, 12),
    "t5-large": T5Size(1024, 4096, 16, 24),
    "t5-3b": T5Size(1024, 16384, 32, 24, head_width=128),
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
    """The linear maps of each block, seven of a LLaMA, in the model's order: what low-rank methods wrap."""
    return (resolve(size) if isinstance(size, str) else size).matrices()


def count_parameters(size: Size | str, *, rank: int | None = None, vocab_size: int = 32000) -> tuple[int, int]:
    """(total, trainable) parameters of a model whose head predicts tokens.

    Total counts the plain model. Trainable is the same at full rank; with a `rank` it is embeddings, head,
    norms and the factors A and B of every wrapped matrix (P1 Table 2, numbers in brackets).
    """
    size = resolve(size) if isinstance(size, str) else size
    rest = size.others(vocab_size, outputs=vocab_size)
    wrapped = list(matrices(size))
    total = rest + sum(m.rows * m.cols for m in wrapped)
    if rank is None:
        return total, total
    return total, rest + sum(rank * (m.rows + m.cols) for m in wrapped)
