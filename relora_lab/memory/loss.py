"""What the loss (cross_entropy.py) needs beside what it keeps. Numbers only, no torch."""

from collections.abc import Iterator

from relora_lab.costs import LOGITS, SOFTMAX
from relora_lab.memory.step import Step


def while_training(step: Step, vocab_size: int) -> int:
    """Bytes at the worst moment, beside the gradients of hidden states and head that are held from here on."""
    table = vocab_size * step.size.hidden
    copy = step.compute * table if step.compute != step.weight else 0  # of the head
    return _hidden(step) + copy + max(_moments(step, vocab_size)) - step.weight * table


def while_evaluating(step: Step, vocab_size: int) -> int:
    """Bytes at the worst moment, without gradients."""
    tokens = next(_parts(step, vocab_size))
    return _hidden(step) + step.compute * vocab_size * tokens + _softmax(step, vocab_size, tokens)


def _moments(step: Step, vocab_size: int) -> Iterator[int]:
    """Bytes of logits, of what is made of them, and of the head's gradient, one moment after the other."""
    table = vocab_size * step.size.hidden
    product, sum_ = step.compute * table, 0
    for tokens in _parts(step, vocab_size):
        logits = step.compute * vocab_size * tokens
        yield logits + _softmax(step, vocab_size, tokens) + sum_
        yield logits + step.compute * step.size.hidden * tokens + sum_
        if not sum_:
            sum_ = product
        elif step.compute != 4:  # summed up in float32; a sum in float32 is added to in place
            yield logits + product + step.widened * table + sum_ + (4 * table if sum_ == product else 0)
            sum_ = 4 * table
    yield sum_ + (step.weight * table if sum_ != step.weight * table else 0)


def _hidden(step: Step) -> int:
    """Bytes of the last norm's output: a copy without each row's last token, if there are several rows."""
    return step.compute * step.size.hidden * (step.predicted if step.rows > 1 else step.tokens)


def _softmax(step: Step, vocab_size: int, tokens: int) -> int:
    """Bytes of a softmax in float32, and of the copy that it reads."""
    return vocab_size * (4 + step.widened) * min(tokens, max(1, SOFTMAX // vocab_size))


def _parts(step: Step, vocab_size: int) -> Iterator[int]:
    """Of how many tokens logits are made at once."""
    most = max(1, LOGITS // (step.compute * vocab_size))
    return (min(most, step.predicted - start) for start in range(0, step.predicted, most))
