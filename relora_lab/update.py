"""One update: gradients of a batch in micro-batches, added up over processes, clipped; and the optimizer's step."""

import math
from typing import NamedTuple

import torch

from relora_lab import processes
from relora_lab.lowrank import unchanging
from relora_lab.objective import Objective
from relora_lab.state import TrainState


class Update(NamedTuple):
    """What an update found: mean loss (nats) and norm of the gradient before clipping; lr and tokens it used.

    It was `applied` unless loss or norm are not finite.
    """

    loss: float
    grad_norm: float
    lr: float
    tokens: int
    applied: bool


def update(state: TrainState, objective: Objective) -> Update:
    """Train on the batch of the state's step, and count the step if that was possible."""
    lr = state.lr
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    training = state.config.training
    batch = objective.batch(state.step).to(training.device)
    parts = processes.parts(batch, training.micro_batches)
    loss = torch.zeros((), device=training.device)
    # With checkpointing memory counts most, and W + s·B·A is made for each part.
    passes = 1 if training.gradient_checkpointing else len(parts)
    with unchanging(state.layers.values(), passes):
        for part in parts:
            share = objective.predictions(batch) / objective.predictions(part)
            part_loss = objective.loss(state.model, part) / share
            part_loss.backward()
            loss += part_loss.detach()
    trained = [p for group in state.optimizer.param_groups for p in group["params"]]
    processes.add_up([*(p.grad for p in trained if p.grad is not None), loss])
    norm = torch.nn.utils.clip_grad_norm_(trained, state.config.optimizer.clip)
    found = Update(float(loss), float(norm), lr, objective.tokens(batch), math.isfinite(loss) and math.isfinite(norm))
    if found.applied:
        state.optimizer.step()
        state.step += 1
    state.optimizer.zero_grad()
    return found
