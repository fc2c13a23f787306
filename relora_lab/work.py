"""Floating-point operations of training: all products of an update, and of a run. Numbers only, no torch."""

from relora_lab import sizes
from relora_lab.costs import merging_pays
from relora_lab.settings import RunConfig


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


def other_flops(size: sizes.Size, tokens: int, sequence: int, vocabulary: int) -> tuple[int, int]:
    """Of products without a wrapped matrix, forward and backward: attention (12·layers·T·sequence·hidden), head."""
    return 12 * size.layers * tokens * sequence * size.hidden, 6 * tokens * vocabulary * size.hidden


def update_flops(run: RunConfig, *, low_rank: bool) -> int:
    """Of all products of an update. With gradient checkpointing the blocks' forward products count twice.

    The settings have to say how large the vocabulary is, as for a plan of memory.
    """
    shape, length, passes = run.model.shape, run.data.sequence_length, run.training.micro_batches
    tokens, matrices = run.data.batch_size * length, list(sizes.matrices(run.model.shape))
    rank = run.low_rank.rank if low_rank and run.low_rank else None
    attention, head = other_flops(shape, tokens, length, run.data.vocabulary or 0)
    found = attention + head
    found += sum(matrix_flops(of.rows, of.cols, rank, tokens // passes, passes=passes) for of in matrices)
    if run.training.gradient_checkpointing:
        found += attention // 3 + sum(2 * tokens * of.rows * of.cols for of in matrices)
    return found


def run_flops(run: RunConfig) -> int:
    """Of all updates of a run, the warm start's too, and its evaluations (a forward pass is a third)."""
    training = run.training
    full_rank = training.steps - run.low_rank_steps
    updates = full_rank * update_flops(run, low_rank=False) + run.low_rank_steps * update_flops(run, low_rank=True)
    evaluated = training.steps // training.eval_every * training.eval_tokens
    tokens = run.data.batch_size * run.data.sequence_length
    return updates + evaluated * update_flops(run, low_rank=False) // (3 * tokens)
