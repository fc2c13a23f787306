"""Fine-tuning as the loop sees it: a head for labels on a LLaMA, or a T5 that writes the label's text."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relora_lab import metrics, processes, seeds, tasks
from relora_lab.errors import Interrupted
from relora_lab.examples import Examples, Part
from relora_lab.objective import evaluating
from relora_lab.settings import RunConfig

IGNORED = -100  # a place of a target that is none


@dataclass(frozen=True)
class Batch:
    """Inputs (n, length), padded on the right to the longest, their `lengths` (n,), and `labels`: (n,) or, of a T5,
    the target's tokens (n, longest target), padded with IGNORED."""

    inputs: Tensor
    lengths: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: slice) -> "Batch":
        return Batch(self.inputs[rows], self.lengths[rows], self.labels[rows])

    def split(self, rows: int) -> tuple["Batch", ...]:
        """In parts of so many rows; the last may have less."""
        return tuple(self[first : first + rows] for first in range(0, len(self), rows))

    def to(self, device: str | torch.device) -> "Batch":
        """On that device."""
        return Batch(self.inputs.to(device), self.lengths.to(device), self.labels.to(device))

    @property
    def mask(self) -> Tensor:
        """1 where an input has a token, 0 where it is padded (n, length)."""
        places = torch.arange(self.inputs.shape[1], device=self.inputs.device)
        return (places < self.lengths[:, None]).long()


@dataclass(frozen=True)
class Scores:
    """Mean loss over the held-out examples, and the task's metrics by name, the one that counts first."""

    loss: float
    examples: int
    metrics: dict[str, float]

    @property
    def line(self) -> dict[str, float]:
        """As eval.jsonl has it."""
        score = next(iter(self.metrics.values()))
        return {"loss": self.loss, "score": score, "examples": self.examples, **self.metrics}


class _OfExamples(ABC):
    """What both kinds share: a batch is a function of (seed, step), every epoch a new permutation of the examples."""

    headline = "score"
    chance: float

    def __init__(self, config: RunConfig, examples: Examples) -> None:
        assert config.task is not None
        self.task = tasks.resolve(config.task.name)
        self.examples = examples
        self._autocast = config.training.precision == "bf16-autocast"
        self._batch_size, self._seed = config.data.batch_size, seeds.derive(config.training.seed, "data")
        self._epoch, self._order = -1, np.empty(0, np.int64)
        rows = processes.most_rows(config.data.batch_size, config.training.micro_batches)
        count = min(config.task.eval_examples or len(examples.held_out), len(examples.held_out))
        chosen = np.arange(count) * len(examples.held_out) // count
        self._held_out = [(at, chosen[at : at + rows]) for at in range(0, count, rows)]
        self._labels = examples.held_out.labels[chosen]

    def batch(self, step: int) -> Batch:
        """The batch of the update after `step` updates."""
        first = step * self._batch_size
        return self._of(self.examples.train, [self._example(n) for n in range(first, first + self._batch_size)])

    def tokens(self, batch: Batch) -> int:
        """How many tokens are read: padding is none."""
        return int(batch.lengths.sum())

    @abstractmethod
    def predictions(self, batch: Batch) -> int:
        """Over how many predictions the loss is a mean."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch."""
        with torch.autocast(batch.inputs.device.type, torch.bfloat16, enabled=self._autocast):
            return self._loss(model, batch)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, signals: Sequence[int] = ()) -> Scores:
        """Loss and metrics on the held-out examples, in eval mode; each process takes some of the batches.

        Raises Interrupted as soon as there are signals.
        """
        device = next(model.parameters()).device
        total = predicted = 0.0
        found = torch.zeros(len(self._labels), dtype=torch.float64)
        with evaluating(model), torch.autocast(device.type, torch.bfloat16, enabled=self._autocast):
            for at, chosen in self._held_out[processes.rank() :: processes.count()]:
                if signals:
                    raise Interrupted(signals[0], "in an evaluation")
                batch = self._of(self.examples.held_out, chosen).to(device)
                count = self.predictions(batch)
                total, predicted = total + float(self._loss(model, batch)) * count, predicted + count
                found[at : at + len(batch)] = self._predict(model, batch).double().cpu()
        total, predicted = processes.totals(total, predicted)
        processes.add_up([found])
        scores = metrics.scores(self.task.metrics, found.numpy(), self._labels)
        return Scores(total / predicted, len(self._labels), scores)

    @torch.no_grad()
    def probe(self, model: nn.Module) -> float:
        """The loss on one fixed held-out batch: what a restart must not change. Without autocast, which rounds."""
        batch = self._of(self.examples.held_out, self._held_out[0][1]).to(next(model.parameters()).device)
        with evaluating(model):
            return float(self._loss(model, batch))

    def _example(self, number: int) -> int:
        epoch, position = divmod(number, len(self.examples.train))
        if epoch != self._epoch:
            random = np.random.default_rng(seeds.derive(self._seed, "epoch", epoch))
            self._epoch, self._order = epoch, random.permutation(len(self.examples.train))
        return int(self._order[position])

    def _of(self, part: Part, chosen: Sequence[int] | np.ndarray) -> Batch:
        inputs = [part.tokens(int(index)) for index in chosen]
        lengths = torch.tensor([len(tokens) for tokens in inputs])
        return Batch(_padded(inputs, self.examples.pad_token_id), lengths, self._targets(part.labels[chosen]))

    @abstractmethod
    def _targets(self, labels: np.ndarray) -> Tensor: ...

    @abstractmethod
    def _loss(self, model: Any, batch: Batch) -> Tensor: ...

    @abstractmethod
    def _predict(self, model: Any, batch: Batch) -> Tensor:
        """The label of each example (n,); nan where the model says none."""


class Classification(_OfExamples):
    """A LLaMA with a head over the last token of each input: cross-entropy, or of a number the squared error.

    Attention is causal and padding comes last, so no token sees it: padding changes nothing.
    """

    def __init__(self, config: RunConfig, examples: Examples) -> None:
        super().__init__(config, examples)
        regression = self.task.is_regression
        # What predicting the mean costs.
        self.chance = float(examples.train.labels.var()) if regression else math.log(len(self.task.labels))

    def predictions(self, batch: Batch) -> int:
        """One an example."""
        return len(batch)

    def _targets(self, labels: np.ndarray) -> Tensor:
        found = torch.from_numpy(np.array(labels, np.float32))
        return found if self.task.is_regression else found.long()

    def _loss(self, model: Any, batch: Batch) -> Tensor:
        logits = _logits(model, batch)
        return (
            F.mse_loss(logits[:, 0], batch.labels)
            if self.task.is_regression
            else F.cross_entropy(logits, batch.labels)
        )

    def _predict(self, model: Any, batch: Batch) -> Tensor:
        logits = _logits(model, batch)
        return logits[:, 0] if self.task.is_regression else logits.argmax(1)


def _logits(model: Any, batch: Batch) -> Tensor:
    """(n, labels), float32."""
    hidden = model.base_model(input_ids=batch.inputs, use_cache=False).last_hidden_state
    return model.score(hidden[torch.arange(len(batch), device=hidden.device), batch.lengths - 1]).float()


class TextToText(_OfExamples):
    """A T5 that writes the label: mean cross-entropy over the target's tokens, and greedy decoding as T5's own."""

    def __init__(self, config: RunConfig, examples: Examples) -> None:
        super().__init__(config, examples)
        self.chance = math.log(examples.vocab_size)
        self._written = {tuple(tokens): target for target, tokens in enumerate(examples.targets)}

    def predictions(self, batch: Batch) -> int:
        """One a token of the targets."""
        return int((batch.labels != IGNORED).sum())

    def _targets(self, labels: np.ndarray) -> Tensor:
        targets = [self.examples.targets[self.task.target_of(float(label))] for label in labels]
        return _padded([np.array(tokens) for tokens in targets], IGNORED)

    def _loss(self, model: Any, batch: Batch) -> Tensor:
        found: Tensor = model(
            input_ids=batch.inputs, attention_mask=batch.mask, labels=batch.labels, use_cache=False
        ).loss
        return found

    def _predict(self, model: Any, batch: Batch) -> Tensor:
        longest = max(map(len, self.examples.targets))
        end, pad = self.examples.eos_token_id, self.examples.pad_token_id
        how = {
            "do_sample": False,
            "num_beams": 1,
            "max_new_tokens": longest,
            "eos_token_id": end,
            "pad_token_id": pad,
        }
        written = model.generate(batch.inputs, attention_mask=batch.mask, decoder_start_token_id=pad, **how)
        labels = []
        for tokens in written[:, 1:].tolist():
            text = tokens[: tokens.index(end) + 1] if end in tokens else tokens
            target = self._written.get(tuple(text))
            labels.append(math.nan if target is None else self.task.label_of(target))
        return torch.tensor(labels)


def _padded(rows: Sequence[np.ndarray], value: int) -> Tensor:
    """Rows of tokens (n, longest), int64, padded on the right."""
    return nn.utils.rnn.pad_sequence(
        [torch.from_numpy(row.astype(np.int64)) for row in rows], batch_first=True, padding_value=value
    )
