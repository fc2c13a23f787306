"""How long an update takes on this machine, measured on less of the model and less of the batch."""

import statistics
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from relora_lab import process, stages
from relora_lab import state as states
from relora_lab.objective import LanguageModelling
from relora_lab.settings import RunConfig
from relora_lab.update import update

TOKENS = 1024  # of the timed batch, at most
UPDATES = 5


class Pace:
    """Seconds that updates take here, each kind of update timed once."""

    def __init__(self) -> None:
        self._known: dict[RunConfig, float] = {}

    def seconds(self, run: RunConfig, start: int, end: int) -> float | None:
        """Of the updates of a run from step `start` to `end` with their evaluations, which take a third of an
        update's work a token; None where the run's device is not here, and for a task, whose inputs have any
        length."""
        training, data = run.training, run.data
        if run.task or (training.device != "cpu" and not torch.cuda.is_available()):
            return None
        full_rank = max(0, min(end, training.warm_start) - start)
        low_rank = end - start - full_rank
        seconds = low_rank * self._timed(run) if low_rank else 0.0
        if full_rank:
            seconds += full_rank * self._timed(stages.stage_config(run, training.warm_start))
        evaluated = training.eval_tokens / training.eval_every / (data.batch_size * data.sequence_length)
        return seconds * (1 + evaluated / 3)

    def _timed(self, run: RunConfig) -> float:
        """A transformer's time is linear in layers and, but for the optimizer's, in tokens."""
        layers, kind = run.model.shape.layers, _kind(run)
        if kind not in self._known:
            one, two = (_seconds(kind, count) for count in (1, min(2, layers)))
            self._known[kind] = one + (layers - 1) * max(0.0, two - one)
        return self._known[kind] * run.data.batch_size / kind.data.batch_size


def _kind(run: RunConfig) -> RunConfig:
    """The settings that an update's time depends on, the others made alike; with a batch that is soon done."""
    method = stages.unrestarted(run.low_rank) if run.low_rank else run.method
    rows = max(1, min(run.data.batch_size // run.training.micro_batches, TOKENS // run.data.sequence_length))
    alike: dict[str, Any] = {"seed": 0, "steps": 10**8, "warm_start": 0, "reference_step": 0, "micro_batches": 1}
    alike |= {"eval_tokens": run.data.sequence_length, "snapshot_every": None, "compile": False}
    return replace(
        run,
        name=None,
        method=method,
        training=replace(run.training, **alike),
        optimizer=replace(run.optimizer, lr=1e-4, low_rank_lr=None, warmup_steps=0),
        data=replace(run.data, batch_size=rows, corpus="stdlib"),
    )


def _seconds(kind: RunConfig, layers: int) -> float:
    """The median over some updates of a model of so many layers on random tokens."""
    run = replace(kind, model=replace(kind.model, layers=layers))
    vocab_size, length = run.data.vocabulary or 32000, run.data.sequence_length
    tokens = np.random.default_rng(0).integers(vocab_size, size=(UPDATES + 2) * run.data.batch_size * length + 1)
    corpus: Any = SimpleNamespace(train=tokens, held_out=tokens, vocab_size=vocab_size)
    with process.threads(run.training.threads):
        state, objective = states.initial(run, vocab_size), LanguageModelling(run, corpus)
        if run.low_rank:
            states.begin_low_rank(state, run.low_rank)
        state.model.train()
        times = []
        for _ in range(UPDATES + 1):
            begun = time.perf_counter()
            update(state, objective)  # reads the loss, so a GPU is done too
            times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])
