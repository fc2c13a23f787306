"""The most that a run of this package holds: each moment that can be its peak."""

from collections.abc import Iterator
from dataclasses import replace

from relora_lab import sizes
from relora_lab.errors import require
from relora_lab.memory import loss
from relora_lab.memory.held import PRECISIONS, STATE_BYTES, Cells, largest_tensor, weight_bytes
from relora_lab.memory.step import (
    Step,
    block_matrices,
    entries,
    factor_entries,
    gradient,
    making,
    of_gradient,
    saved,
    saved_by_block,
    saved_by_loss,
    saved_by_norm,
    shared,
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
    the CPU the growth of the process, but for libraries' scratch (2 to 6 % with bfloat16), if freed memory goes back
    to the system (MALLOC_MMAP_THRESHOLD_=65536; glibc otherwise keeps a quarter to a half more). With torch.compile
    it is an estimate: what the eager model holds. Raises BadInput if only the tokenizer knows the vocabulary.
    """
    require(run.task is None, "task: memory is planned for training on text, not for fine-tuning")
    require(
        run.data.vocabulary is not None,
        f"data.vocab_size: only the tokenizer '{run.data.tokenizer}' knows it; set it for the plan",
    )
    found: dict[str, Cells] = {}
    if run.low_rank and run.training.warm_start:
        found |= {f"warm start: {name}": cells for name, cells in _phases(run, full.Options())}
    return found | dict(_phases(run, run.method))


def step_of(run: RunConfig, method: Options | None = None) -> Step:
    """A run's micro-batch, with its method or with another one."""
    return Step(
        method=method or run.method,
        size=run.model.shape,
        rows=micro_batch(run),
        length=run.data.sequence_length,
        precision=run.training.precision,
        passes=run.training.micro_batches,
        rebuild=run.training.rebuild_weights,
        checkpointing=run.training.gradient_checkpointing,
        device="cpu" if run.training.device == "cpu" else "cuda",
    )


def _phases(run: RunConfig, method: Options) -> Iterator[tuple[str, Cells]]:
    size, vocab_size, training = run.model.shape, run.data.vocabulary or 0, run.training
    step = step_of(run, method)
    held = _held(run, method)

    def moment(grad: float = 0, act: float = 0, extra: float = 0) -> Cells:
        return Cells(held.param, grad, held.os, act, extra)

    # Gradients: of all that is trained after the backward pass; before, those of earlier micro-batches.
    gradients = step.weight * method.trained(size, vocab_size)
    accumulated = gradients if step.passes > 1 else 0
    head = step.weight * vocab_size * size.hidden
    one_block = step.weight * (method.trained(size, 0) - size.hidden) / size.layers

    # With checkpointing, what blocks do not keep is held all the same until the loss, or the last pass.
    act, cast = saved(step), 0
    if step.checkpointing:
        act, cast = act + shared(step), _copies(step)
    yield "forward", moment(accumulated, act, _making(step, keeps=not step.checkpointing) + cast)
    yield "loss", moment(accumulated + head, act, loss.while_training(step, vocab_size) + cast)
    act -= saved_by_loss(step)
    yield (
        "backward, last norm",
        moment(accumulated or head, act, (step.weight + step.compute) * size.hidden * step.tokens),
    )
    act -= saved_by_norm(step)
    yield "backward, last block", moment(accumulated or head, act + _again(step), _backward(step))
    # The first block's is the last: of all gradients only its own and the embeddings' are still to come.
    others = shared(step) - shared(step) // size.layers
    before = accumulated or gradients - head - one_block
    yield "backward, first block", moment(before, saved_by_block(step) + others, _backward(step))
    yield "optimizer", moment(gradients, 0, _optimizer_work(run, method))
    yield "evaluation", moment(extra=_evaluation_work(step, vocab_size))
    if step.low_rank and step.low_rank.merges:
        yield "restart", moment(extra=_restart_work(step.low_rank, size, step.weight))
    if step.low_rank:
        if training.device != "cpu":  # each W that is made goes to the CPU
            yield "writing weights", moment(extra=(3 * 4 + step.weight) * max(map(entries, sizes.matrices(size))))
        else:
            yield "writing weights", moment(extra=step.weight * sum(map(entries, sizes.matrices(size))))
            yield "closing check", moment(extra=_check_work(size))


def _held(run: RunConfig, method: Options) -> Cells:
    """What is there all the time: weights, copies of a cycle's first factors, the optimizer's state."""
    size, vocab_size = run.model.shape, run.data.vocabulary or 0
    weight = PRECISIONS[run.training.precision][0]
    os: float = STATE_BYTES[run.optimizer.state_dtype] * method.optimizer_entries(size, vocab_size)
    if isinstance(method, galore.Options):
        os += 4 * method.projector_entries(size)
    return Cells(param=weight_bytes(method, size, vocab_size, weight) + _start_factors(method, size) * weight, os=os)


def _copies(step: Step) -> int:
    """Bytes of autocast's copies of weights, held until the loss is there. Low-rank layers ask it for none."""
    return 0 if step.low_rank else sum(step.multiplied(m) for m in sizes.matrices(step.size))


def _making(step: Step, *, keeps: bool) -> int:
    """Bytes needed while the worst matrix's V is made, and of V unless the pass `keeps` it or all share it."""
    transient = step.low_rank is not None and not step.shares and (step.rebuilds or not keeps)
    return max(making(step, m) + (step.multiplied(m) if transient else 0) for m in block_matrices(step.size))


def _again(step: Step) -> int:
    """Bytes that a checkpointed block keeps once it is computed again."""
    if not step.checkpointing:
        return 0
    # Its input is what the first norm keeps; V is there if all passes share it.
    there = step.weight * step.size.hidden * step.tokens + shared(step) // step.size.layers
    return saved_by_block(step) - there


def _backward(step: Step) -> int:
    """Bytes that a block's backward pass, with its worst map in the end, needs beside what the block kept."""
    hidden, inner = step.tokens * step.size.hidden, step.tokens * step.compute * step.size.intermediate
    copy = step.compute * hidden if step.compute != step.weight else 0  # of the residual stream's gradient
    worst = max(block_matrices(step.size), key=entries)
    last = inner + copy + of_gradient(step, worst)
    product = 3 * inner + (0 if step.passes > 1 else gradient(step, worst))  # of silu(gate) and up
    again = _making(step, keeps=True) if step.checkpointing else 0
    return step.weight * hidden + max(last, product, again)


def _evaluation_work(step: Step, vocab_size: int) -> int:
    """Bytes while held-out losses are measured: as in training, and on one batch, not cast."""
    evaluation = replace(step, passes=1, checkpointing=False)
    probe = replace(evaluation, precision="bf16" if step.weight == 2 else "float32")
    return max(_without_gradients(s, vocab_size) for s in ((evaluation, probe) if step.low_rank else (evaluation,)))


def _without_gradients(step: Step, vocab_size: int) -> int:
    """Bytes of a forward pass that keeps nothing but autocast's copies of weights."""
    inner = 3 * step.compute * step.size.intermediate * step.tokens  # silu(gate), up, their product
    return _copies(step) + max(_making(step, keeps=False) + inner, loss.while_evaluating(step, vocab_size))


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
    return sum(factor_entries(m, rank) for m in sizes.matrices(size))


def _optimizer_work(run: RunConfig, method: Options) -> float:
    """Bytes that the optimizer needs for one tensor at a time."""
    weight, state = PRECISIONS[run.training.precision][0], STATE_BYTES[run.optimizer.state_dtype]
    if weight == state and not isinstance(method, galore.Options | adam_mini.Options):
        return 0  # torch's fused AdamW
    # In float32: numerator and denominator, and wide copies of weight and gradient, and of both moments.
    size, vocab_size = run.model.shape, run.data.vocabulary or 0
    adam = 4 * (2 + (2 if weight != 4 else 0) + (2 if state != 4 else 0)) * largest_tensor(size, vocab_size)
    if not isinstance(method, galore.Options):
        return adam
    return max(adam, 4 * (2 + (1 if weight != 4 else 0)) * max(map(entries, block_matrices(size))) + _svd_work(size))


def _svd_work(size: Size) -> int:
    """Bytes of the largest SVD in float32: copy, U and Vᵀ, and LAPACK's 4·min² (gesdd)."""
    return max(
        4 * (m.rows * m.cols + min(m.rows, m.cols) * (m.rows + m.cols + 4 * min(m.rows, m.cols)))
        for m in block_matrices(size)
    )


def _restart_work(method: LowRankOptions, size: Size, weight: int) -> float:
    """Bytes of the factors copied to be written, of one merged matrix and its update in float32, and an SVD."""
    largest = max(map(entries, block_matrices(size)))
    svd = _svd_work(size) if _splits(method) else 0
    return weight * _factors(method.rank, size) + 3 * 4 * largest + svd


def _check_work(size: Size) -> float:
    """Bytes of float64 matrices while W's change is compared with one factor pair after the other."""
    return 4 * 8 * max(map(entries, block_matrices(size)))
