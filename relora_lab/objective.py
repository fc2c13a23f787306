"""What a task is to the loop: a batch for a step, a loss, an evaluation."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from relora_lab import data, processes, seeds
from relora_lab.cross_entropy import mean_cross_entropy
from relora_lab.data import Corpus
from relora_lab.errors import Interrupted
from relora_lab.settings import RunConfig

Loss = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy in nats per predicted token, over `tokens` of them."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss); inf where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


class LanguageModelling:
    """Predict the next token. `classes` is the vocabulary: chance is ln(classes)."""

    def __init__(self, config: RunConfig, corpus: Corpus) -> None:
        batch_size, length = config.data.batch_size, config.data.sequence_length
        seed = seeds.derive(config.training.seed, "data")
        self.classes = corpus.vocab_size
        self._autocast = config.training.precision == "bf16-autocast"
        self.batch = data.Batches(corpus, batch_size=batch_size, sequence_length=length, seed=seed)
        micro_batches = config.training.micro_batches
        rows = processes.most_rows(batch_size, micro_batches)  # what fits in training fits here
        held_out = partial(data.held_out_batches, corpus, tokens=config.training.eval_tokens, sequence_length=length)
        self._held_out = list(held_out(batch_size=rows))
        self._probe = next(held_out(batch_size=batch_size // micro_batches)).split(rows)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Mean cross-entropy of a batch (n, length) of token ids; each row predicts its last length - 1."""
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self._autocast):
            return _cross_entropy(model, batch)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, signals: Sequence[int] = ()) -> Evaluation:
        """Token-weighted mean over the fixed held-out set, in eval mode; each process takes some of its batches.

        Raises Interrupted as soon as there are signals.
        """
        own = _unless(signals, self._held_out[processes.rank() :: processes.count()])
        total, tokens = processes.totals(*_total(self.loss, model, own))
        return Evaluation(total / tokens, round(tokens))

    @torch.no_grad()
    def probe(self, model: nn.Module) -> float:
        """The loss on one fixed held-out batch: what a restart must not change. Without autocast, which rounds."""
        total, tokens = _total(_cross_entropy, model, self._probe)
        return total / tokens


def _unless(signals: Sequence[int], batches: Iterable[Tensor]) -> Iterator[Tensor]:
    for batch in batches:
        if signals:
            raise Interrupted(signals[0], "in an evaluation")
        yield batch


def _total(loss: Loss, model: nn.Module, batches: Iterable[Tensor]) -> tuple[float, int]:
    """The sum of a loss over the tokens that are predicted, in eval mode, and how many these are."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    total, tokens = 0.0, 0
    try:
        for batch in batches:
            predicted = batch[:, 1:].numel()
            total += float(loss(model, batch.to(device))) * predicted
            tokens += predicted
    finally:
        model.train(training)
    return total, tokens


def _cross_entropy(model: nn.Module, batch: Tensor) -> Tensor:
    language_model: Any = model
    # One name: of the hidden states, what does not predict is let go.
    hidden = language_model.base_model(input_ids=batch, use_cache=False).last_hidden_state
    hidden = hidden[:, :-1].flatten(0, 1)
    return mean_cross_entropy(hidden, language_model.get_output_embeddings().weight, batch[:, 1:].flatten())
