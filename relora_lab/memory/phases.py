"""The most that a run of this package holds: each moment that can be its peak."""

from collections.abc import Iterator

from relora_lab import sizes
from relora_lab.errors import require
from relora_lab.memory.held import (
    PRECISIONS,
    STATE_BYTES,
    Cells,
    autocast_copies,
    saved,
    saved_by_block,
    weight_bytes,
)
from relora_lab.methods import adam_mini, full, galore
from relora_lab.methods._options import LowRankOptions, Options
from relora_lab.settings import RunConfig
from relora_lab.sizes import Size


def peak(run: RunConfig) -> tuple[str, Cells]:
    """The moment at which a run holds most, and what it holds then."""
    return max(phases(run).items(), key=lambda item: item[1].total)


def phases(run: RunConfig) -> dict[str, Cells]:
    """What a run holds in each of the moments that can be its peak, in bytes.

    Only tensors are counted: on a GPU what torch.cuda.max_memory_allocated() shows beyond libraries' workspaces, on
    the CPU the growth of the process if freed memory goes back to the system (MALLOC_MMAP_THRESHOLD_=65536; glibc
    otherwise keeps a quarter to a half more). Raises BadInput if only the tokenizer knows the vocabulary.
    """
    require(
        run.data.vocabulary is not None,
        f"data.vocab_size: only the tokenizer '{run.data.tokenizer}' knows it; set it for the plan",
    )
    found: dict[str, Cells] = {}
    if run.low_rank and run.training.warm_start:
        found |= {f"warm start: {name}": cells for name, cells in _phases(run, full.Options())}
    return found | dict(_phases(run, run.method))


def _phases(run: RunConfig, method: Options) -> Iterator[tuple[str, Cells]]:
    size, vocab_size, training = run.model.shape, run.data.vocabulary or 0, run.training
    weight, compute = PRECISIONS[training.precision]
    rows, length = micro_batch(run), run.data.sequence_length
    tokens, predicted = rows * length, rows * (length - 1)
    low_rank = method if isinstance(method, LowRankOptions) else None
    largest = max(m.rows * m.cols for m in sizes.matrices(size))
    table = vocab_size * size.hidden  # entries of the embeddings, and of the head

    # Held all the time.
    param = weight_bytes(method, size, vocab_size, weight) + _start_factors(method, size) * weight
    os: float = STATE_BYTES[run.optimizer.state_dtype] * method.optimizer_entries(size, vocab_size)
    if isinstance(method, galore.Options):
        os += 4 * method.projector_entries(size)
    held = Cells(param=param, os=os)

    # Gradients: of all that is trained after the backward pass; before, those of earlier micro-batches.
    gradients = weight * method.trained(size, vocab_size)
    accumulated = gradients if training.micro_batches > 1 else 0
    # A gradient is made before it is added to the accumulated one; autocast makes it in bfloat16 first.
    making = (weight if accumulated else 0) + (compute if compute != weight else 0)

    # Activations, without the log-softmax, which lives from the loss to its gradient; and one block's.
    log_softmax = 4 * vocab_size * predicted
    act = saved(method, size, vocab_size, rows, length, training.precision, training.gradient_checkpointing)
    act -= log_softmax
    block = tokens * saved_by_block(method, size, weight, compute)
    # Computed once more for its backward pass; a float32 input is what the norm keeps of it.
    again = block - (tokens * 4 * size.hidden if weight == 4 else 0) if training.gradient_checkpointing else 0
    # In a block's backward pass: gradients of two of the MLP's inner vectors, and of the residual stream and a sum.
    flowing = tokens * (2 * compute * size.intermediate + 2 * weight * size.hidden)
    # A low-rank layer makes W anew to multiply with it (quantised), and W + s·B·A for its row norms (in forward).
    dequantised = compute * largest if low_rank and low_rank.quantise else 0
    norms = 4 * largest * (2 if weight == 4 and not dequantised else 3) if low_rank and low_rank.rescales else 0
    # What a block's backward pass adds to its activations; a checkpointed one makes row norms again before it.
    one = low_rank.rank * max(size.hidden, size.intermediate) if low_rank else largest
    passing = max(flowing + dequantised + making * one, norms if training.gradient_checkpointing else 0)
    cast = autocast_copies(method, size, vocab_size, training.precision) if training.gradient_checkpointing else 0

    def moment(grad: float = 0, act: float = 0, extra: float = 0) -> Cells:
        return Cells(held.param, grad, held.os, act, extra)

    # The model's logits, and a float32 copy of those that predict; autocast holds its copies of weights until then.
    logits = compute * vocab_size * tokens + 4 * vocab_size * predicted
    yield "forward", moment(accumulated, act, max(logits, norms, dequantised) + cast)
    # The log-softmax, its gradient, and the logits' gradient.
    yield "loss", moment(accumulated, act + log_softmax, 2 * log_softmax)
    # The logits' gradient in the head's backward pass, and the gradient of the head.
    head = accumulated or weight * table
    yield "backward, head", moment(head, act, compute * vocab_size * tokens + making * table)
    yield "backward, last block", moment(head, act + again, passing)
    # The first block's is the last: of all gradients only its own and the embeddings' are still to come.
    before = accumulated or gradients - weight * (table + (method.trained(size, 0) - size.hidden) / size.layers)
    yield "backward, first block", moment(before, block, passing)
    yield "optimizer", moment(gradients, 0, _optimizer_work(run, method, largest, table))
    if low_rank and low_rank.merges:
        yield "restart", moment(extra=_restart_work(low_rank, size, weight))
    if low_rank:
        yield "writing weights", moment(extra=weight * sum(m.rows * m.cols for m in sizes.matrices(size)))
        if training.device == "cpu":
            yield "closing check", moment(extra=_check_work(size))


def micro_batch(run: RunConfig) -> int:
    """Sequences in the model at a time."""
    return run.data.batch_size // run.training.micro_batches


def _start_factors(method: Options, size: Size) -> int:
    """Entries of the copies of B and A that a run keeps where a cycle does not begin with B = 0."""
    if isinstance(method, LowRankOptions) and _splits(method) and method.keeps_function:
        return _factors(method.rank, size)
    return 0


def _splits(method: LowRankOptions) -> bool:
    """Does it make B and A out of W?"""
    return type(method).split is not LowRankOptions.split


def _factors(rank: int, size: Size) -> int:
    return sum(rank * (m.rows + m.cols) for m in sizes.matrices(size))


def _optimizer_work(run: RunConfig, method: Options, largest: int, table: int) -> float:
    """Bytes that the optimizer needs for one tensor at a time."""
    weight, state = PRECISIONS[run.training.precision][0], STATE_BYTES[run.optimizer.state_dtype]
    if weight == state and not isinstance(method, galore.Options | adam_mini.Options):
        return 0  # torch's fused AdamW
    # In float32: numerator and denominator, and wide copies of weight and gradient, and of both moments.
    adam = 4 * (2 + (2 if weight != 4 else 0) + (2 if state != 4 else 0)) * max(largest, table)
    if not isinstance(method, galore.Options):
        return adam
    return max(adam, 4 * (2 + (1 if weight != 4 else 0)) * largest + _svd_work(run.model.shape))


def _svd_work(size: Size) -> int:
    """Bytes of the largest SVD in float32: copy, U and Vᵀ, and LAPACK's 4·min² (gesdd)."""
    return max(
        4 * (m.rows * m.cols + min(m.rows, m.cols) * (m.rows + m.cols + 4 * min(m.rows, m.cols)))
        for m in sizes.matrices(size)
    )


def _restart_work(method: LowRankOptions, size: Size, weight: int) -> float:
    """Bytes of the factors copied to be written, of one merged matrix and its update in float32, and an SVD."""
    largest = max(m.rows * m.cols for m in sizes.matrices(size))
    svd = _svd_work(size) if _splits(method) else 0
    return weight * _factors(method.rank, size) + 3 * 4 * largest + svd


def _check_work(size: Size) -> float:
    """Bytes of float64 matrices while W's change is compared with one factor pair after the other."""
    return 4 * 8 * max(m.rows * m.cols for m in sizes.matrices(size))
