"""Floating-point operations of training: all products of an update, and of a run. Numbers only, no torch."""

from relora_lab import sizes
from relora_lab.costs import merging_pays
from relora_lab.settings import RunConfig

DEFAULT_VOCABULARY = 32000  # where a tokenizer decides it


def matrix_flops(rows: int, cols: int, rank: int | None, tokens: int, *, passes: int = 1) -> int:
    """Of the products of one wrapped matrix, forward and backward, in each of `passes` of so many tokens.

    Full rank (no `rank`): y, and the gradients of x and W. Low rank: where merging pays, W + s·B·A made once for all
    passes in place of W, and the factors' gradients by four thin products or from that of W + s·B·A, whichever is
    less; else y and the gradient of x with W, and six thin products (forms.py).
    """
    if rank is None:
        return passes * 6 * tokens * rows * cols
    thin = 2 * tokens * rank * (rows + cols)
    if not merging_pays(tokens * passes, rows, cols):
        return passes * (4 * tokens * rows * cols + 3 * thin)
    gradients = min(2 * thin, 2 * tokens * rows * cols + 4 * rows * cols * rank)
    return 2 * rows * cols * rank + passes * (4 * tokens * rows * cols + gradients)


def update_flops(run: RunConfig, *, low_rank: bool) -> int:
    """Of all products of an update: the blocks' matrices, the head, attention as 12·layers·tokens·sequence·hidden.

    With gradient checkpointing the blocks' forward products count twice.
    """
    shape, length, passes = run.model.shape, run.data.sequence_length, run.training.micro_batches
    tokens = run.data.batch_size * length
    rank = run.low_rank.rank if low_rank and run.low_rank else None
    blocks = 12 * shape.layers * tokens * length * shape.hidden
    for matrix in sizes.matrices(shape):
        blocks += matrix_flops(matrix.rows, matrix.cols, rank, tokens // passes, passes=passes)
    if run.training.gradient_checkpointing:
        blocks += 4 * shape.layers * tokens * length * shape.hidden
        blocks += sum(2 * tokens * matrix.rows * matrix.cols for matrix in sizes.matrices(shape))
    return blocks + 6 * tokens * (run.data.vocabulary or DEFAULT_VOCABULARY) * shape.hidden


def run_flops(run: RunConfig) -> int:
    """Of all updates of a run, the warm start's too, and its evaluations (a forward pass is a third)."""
    training = run.training
    full_rank = training.steps - run.low_rank_steps
    updates = full_rank * update_flops(run, low_rank=False) + run.low_rank_steps * update_flops(run, low_rank=True)
    evaluated = training.steps // training.eval_every * training.eval_tokens
    tokens = run.data.batch_size * run.data.sequence_length
    return updates + evaluated * update_flops(run, low_rank=False) // (3 * tokens)
