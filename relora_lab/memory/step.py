"""What autograd keeps of a micro-batch, and what a step needs beside that. Numbers only, no torch.

Counted from transformers' LLaMA with sdpa, blocks.py, lowrank.py and the loss of cross_entropy.py; equal to
what saved-tensor hooks see (tests/test_memory.py). With torch.compile it is an estimate.
"""

from dataclasses import dataclass

from relora_lab import sizes
from relora_lab.costs import full_gradient_pays, merging_pays
from relora_lab.memory.held import PRECISIONS
from relora_lab.methods._options import LowRankOptions, Options
from relora_lab.sizes import Matrix, Size


@dataclass(frozen=True, kw_only=True)
class Step:
    """A micro-batch (rows, length) in a model, one of `passes` that see the same weights."""

    method: Options
    size: Size
    rows: int
    length: int
    precision: str
    passes: int = 1
    rebuild: bool = False
    checkpointing: bool = False
    device: str = "cpu"

    @property
    def weight(self) -> int:
        """Bytes of a weight."""
        return PRECISIONS[self.precision][0]

    @property
    def compute(self) -> int:
        """Bytes of a number that a product reads or writes."""
        return PRECISIONS[self.precision][1]

    @property
    def widened(self) -> int:
        """Bytes of a number in the float32 copy that a CPU's kernels make of bfloat16 they sum up; a GPU's do not."""
        return 4 if self.compute == 2 and self.device == "cpu" else 0

    @property
    def tokens(self) -> int:
        """Tokens that the model reads."""
        return self.rows * self.length

    @property
    def predicted(self) -> int:
        """Tokens that count in the loss."""
        return self.rows * (self.length - 1)

    @property
    def low_rank(self) -> LowRankOptions | None:
        """The method's options if it has a low-rank phase."""
        return self.method if isinstance(self.method, LowRankOptions) else None

    @property
    def coded(self) -> bool:
        """Are frozen weights held as codes?"""
        return self.low_rank is not None and self.low_rank.quantise is not None

    @property
    def rebuilds(self) -> bool:
        """Do low-rank layers make again in the backward pass what x was multiplied with?"""
        return self.low_rank is not None and (self.rebuild or self.coded)

    @property
    def shares(self) -> bool:
        """Do all passes multiply with the same V, held from the first to the last?"""
        return self.low_rank is not None and self.sharing > 1 and not self.rebuilds

    @property
    def sharing(self) -> int:
        """How many passes V is made for, as in update.py."""
        return 1 if self.checkpointing else self.passes

    def merges(self, matrix: Matrix) -> bool:
        """Is x multiplied with V = W + s·B·A?"""
        if self.low_rank is None or self.low_rank.rescales:
            return self.low_rank is not None
        share = self.tokens / 2 if self.rebuilds else self.tokens * self.sharing  # as in lowrank.py
        return merging_pays(share, matrix.rows, matrix.cols)

    def multiplied(self, matrix: Matrix) -> int:
        """Bytes of what is made to multiply x with, V or W in the dtype of products; 0 if that is W as it is held."""
        made = self.merges(matrix) or self.compute != self.weight or self.coded
        return self.compute * entries(matrix) if made else 0


def entries(matrix: Matrix) -> int:
    """m·n."""
    return matrix.rows * matrix.cols


def factor_entries(matrix: Matrix, rank: int) -> int:
    """r(m + n): of B and A."""
    return rank * (matrix.rows + matrix.cols)


def saved(step: Step) -> int:
    """Bytes that autograd keeps for the backward pass, and that are neither weights nor their gradients."""
    return saved_by_model(step) + saved_by_loss(step)


def saved_by_loss(step: Step) -> int:
    """Bytes of the hidden states' gradient, which cross_entropy.py keeps in place of logits."""
    return step.compute * step.size.hidden * step.predicted


def saved_by_model(step: Step) -> int:
    """Bytes that embeddings, blocks and the last norm keep. With checkpointing, a block keeps its input alone."""
    size = step.size
    block = step.weight * size.hidden * step.tokens if step.checkpointing else saved_by_block(step)
    rotary = 2 * step.length * (size.hidden // size.heads) * step.weight  # cos and sin
    ids = 8 * step.tokens
    return size.layers * block + saved_by_norm(step) + rotary + ids


def saved_in_plain_training(step: Step, vocab_size: int) -> int:
    """Bytes that transformers' own model keeps with an ordinary head and loss: P2's count."""
    size, log_softmax, target = step.size, 4 * vocab_size, 8
    norms = (2 * size.layers + 1) * 4 * size.hidden  # float32 inputs and normalised vectors, in place of inputs
    mlp = size.layers * step.compute * size.intermediate  # silu(gate)
    head = step.compute * size.hidden
    return saved_by_model(step) + step.tokens * (norms + mlp + head) + (log_softmax + target) * step.predicted


def saved_by_block(step: Step) -> int:
    """Bytes that one block keeps."""
    h, i, compute = step.size.hidden, step.size.intermediate, step.compute
    inputs = 2 * compute * h  # what q, k, v read, and what gate, up read
    attention = 4 * compute * h + 4 * step.size.heads  # q, k, v, what comes out, and float32 logsumexp
    mlp = 3 * compute * i  # gate, up, silu(gate)·up
    maps = sum(_saved_by_map(step, m) for m in block_matrices(step.size))
    return step.tokens * (inputs + attention + mlp) + 2 * saved_by_norm(step) + maps


def saved_by_norm(step: Step) -> int:
    """Bytes that an RMS norm keeps: its input and 1/rms."""
    return step.tokens * (step.weight * step.size.hidden + 4)


def block_matrices(size: Size) -> list[Matrix]:
    """The linear maps of one block."""
    return [m for m in sizes.matrices(size) if m.layer == 0]


def shared(step: Step) -> int:
    """Bytes held from the first of several passes to the last, whatever a block's backward pass lets go."""
    return sum(step.multiplied(m) for m in sizes.matrices(step.size)) if step.shares else 0


def making(step: Step, matrix: Matrix) -> int:
    """Bytes needed, beside V, while it is made (forms.merge) and its row norms are taken."""
    if not step.merges(matrix):
        return 0
    of_codes = step.compute if step.coded else 0
    frozen = of_codes or step.weight
    added = 0 if step.compute == 4 else frozen  # B·A, and a sum that is not V yet
    converted = step.widened if frozen != step.compute else 0
    normed = step.widened if step.low_rank and step.low_rank.rescales else 0
    return entries(matrix) * max(of_codes + added + converted, normed)


def gradient(step: Step, matrix: Matrix) -> int:
    """Bytes of the gradient of what is trained of a linear map."""
    rank = step.low_rank.rank if step.low_rank else None
    return step.weight * (factor_entries(matrix, rank) if rank else entries(matrix))


def of_gradient(step: Step, matrix: Matrix) -> int:
    """Bytes that the backward pass of a linear map makes beside the gradient of x."""
    found = gradient(step, matrix)
    if step.compute != step.weight:  # autocast makes it in bfloat16 first
        found += found * step.compute // step.weight
    if step.low_rank is None:
        return found
    again = step.multiplied(matrix) + making(step, matrix) if step.rebuilds else 0
    of_V = step.merges(matrix) and full_gradient_pays(step.tokens, matrix.rows, matrix.cols, step.low_rank.rank)
    return max(again, found + (step.compute * entries(matrix) if of_V else 0))


def _saved_by_map(step: Step, matrix: Matrix) -> int:
    """Bytes that a linear map keeps beside its input."""
    kept = 0 if step.rebuilds else step.multiplied(matrix)
    if step.low_rank is None:
        return kept
    if step.compute != step.weight:  # copies of B and A
        kept += step.compute * factor_entries(matrix, step.low_rank.rank)
    if not step.merges(matrix):
        kept += step.compute * step.low_rank.rank * step.tokens  # xAᵀ
    if step.low_rank.rescales:  # xVᵀ before m/n, for m; and n, m/n
        kept += matrix.rows * (step.compute * step.tokens + step.weight + step.compute)
    return kept
