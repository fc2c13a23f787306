"""What the loop trains for: a batch for a step, a loss, an evaluation. Here text; fine_tuning.py has tasks."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from relora_lab import data, processes, seeds
from relora_lab.cross_entropy import mean_cross_entropy
from relora_lab.data import Corpus
from relora_lab.errors import Interrupted
from relora_lab.settings import RunConfig

if TYPE_CHECKING:
    from relora_lab.examples import Examples

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

    @property
    def line(self) -> dict[str, float]:
        """As eval.jsonl has it."""
        return {"loss": self.loss, "perplexity": self.perplexity, "tokens": self.tokens}


class Objective(Protocol):
    """What a task is to the loop. `chance` is the loss of a model that has learned nothing but how often each answer
    is right; `headline` names what of an evaluation's line tells how good the model is."""

    chance: float
    headline: str

    def batch(self, step: int) -> Any:
        """The batch of the update after `step` updates."""

    def tokens(self, batch: Any) -> int:
        """How many tokens are read."""

    def predictions(self, batch: Any) -> int:
        """Over how many predictions the loss of a batch is a mean."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of a batch."""

    def evaluate(self, model: nn.Module, signals: Sequence[int] = ()) -> Any:
        """What is measured on what is held out: its `loss`, and a `line`. Raises Interrupted if there are signals."""

    def probe(self, model: nn.Module) -> float:
        """The loss on one fixed held-out batch."""


def of(config: RunConfig, read: "Corpus | Examples") -> Objective:
    """What a run trains for, on what it reads."""
    from relora_lab import fine_tuning  # which needs this module

    if isinstance(read, Corpus):
        return LanguageModelling(config, read)
    kind = fine_tuning.TextToText if config.model.is_t5 else fine_tuning.Classification
    return kind(config, read)


class LanguageModelling:
    """Predict the next token."""

    headline = "perplexity"

    def __init__(self, config: RunConfig, corpus: Corpus) -> None:
        batch_size, length = config.data.batch_size, config.data.sequence_length
        seed = seeds.derive(config.training.seed, "data")
        self.chance = math.log(corpus.vocab_size)
        self._autocast = config.training.precision == "bf16-autocast"
        self.batch = data.Batches(corpus, batch_size=batch_size, sequence_length=length, seed=seed)
        micro_batches = config.training.micro_batches
        rows = processes.most_rows(batch_size, micro_batches)  # what fits in training fits here
        held_out = partial(data.held_out_batches, corpus, tokens=config.training.eval_tokens, sequence_length=length)
        self._held_out = list(held_out(batch_size=rows))
        self._probe = next(held_out(batch_size=batch_size // micro_batches)).split(rows)

    def tokens(self, batch: Tensor) -> int:
        """All of a batch's."""
        return batch.numel()

    def predictions(self, batch: Tensor) -> int:
        """One a token but the first of each row."""
        return batch[:, 1:].numel()

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
    device, total, tokens = next(model.parameters()).device, 0.0, 0
    with evaluating(model):
        for batch in batches:
            predicted = batch[:, 1:].numel()
            total += float(loss(model, batch.to(device))) * predicted
            tokens += predicted
    return total, tokens


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model is in eval mode inside the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _cross_entropy(model: nn.Module, batch: Tensor) -> Tensor:
    language_model: Any = model
    # One name: of the hidden states, what does not predict is let go.
    hidden = language_model.base_model(input_ids=batch, use_cache=False).last_hidden_state
    hidden = hidden[:, :-1].flatten(0, 1)
    return mean_cross_entropy(hidden, language_model.get_output_embeddings().weight, batch[:, 1:].flatten())
