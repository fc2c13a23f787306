"""All that a run carries from step to step, how a low-rank phase begins, and the state as tensors and back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from relora_lab import lowrank, models, schedule, tied
from relora_lab.lowrank import LowRankLinear
from relora_lab.methods import full
from relora_lab.methods._options import LowRankOptions
from relora_lab.optim import state as optimizer_state
from relora_lab.settings import RunConfig

Factors = dict[str, tuple[Tensor, Tensor]]  # B, A by matrix


@dataclass
class TrainState:
    """Model, optimizer and position. `layers` is empty at full rank.

    `cycle` counts merges and restarts. `cycle_start` is the step since which this cycle's change of the merged
    weights is counted, and `start_factors` what B and A were then, where B·A was not zero. `wrapping` is what
    wrapping did, for the record.
    """

    config: RunConfig
    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    layers: dict[str, LowRankLinear] = field(default_factory=dict)
    cycle: int = 0
    cycle_start: int = 0
    start_factors: Factors = field(default_factory=dict)
    wrapping: dict[str, float] = field(default_factory=dict)
    diverged: str | None = None

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        settings, training = self.config.optimizer, self.config.training
        multiplier = partial(schedule.lr_multiplier, warmup_steps=settings.warmup_steps, min_ratio=settings.min_ratio)
        method = self.config.low_rank
        if method is None or not self.layers:
            return settings.lr * multiplier(self.step, total_steps=training.steps)
        return self.config.low_rank_lr * multiplier(
            self.step - training.warm_start,
            total_steps=self.config.low_rank_steps,
            restart_every=method.restart_every if method.jagged else None,
            restart_warmup=method.restart_warmup,
        )

    @property
    def trained(self) -> dict[Tensor, str]:
        """Parameters that are trained, with their names."""
        return {p: name for name, p in self.model.named_parameters() if p.requires_grad}

    def factors(self) -> Factors:
        """Copies of B and A."""
        return {n: (la.lora_B.detach().clone(), la.lora_A.detach().clone()) for n, la in self.layers.items()}

    def begin_cycle(self, *, factors_count: bool = False) -> None:
        """Count the change of the merged weights from here; with `factors_count`, s·B·A as it is belongs to it."""
        self.cycle_start = self.step
        begun = not factors_count and any(bool(layer.lora_B.any()) for layer in self.layers.values())
        self.start_factors = self.factors() if begun else {}


def initial(config: RunConfig, vocab_size: int) -> TrainState:
    """The model that the run begins with, at step 0."""
    training = config.training
    model = models.of_run(config, vocab_size)
    if training.gradient_checkpointing:
        models.checkpoint_blocks(model)
    if training.compile:
        model.base_model.compile()
    # Before the low-rank phase every method trains at full rank, with AdamW.
    begins_with = full.Options() if config.low_rank else config.method
    return TrainState(config, model, begins_with.optimizer(model, config.optimizer))


def begin_low_rank(state: TrainState, method: LowRankOptions) -> None:
    """Wrap the model, with a fresh optimizer for all that is still trained: P1 Algorithm 1, lines 4 to 9."""
    training = state.config.training
    state.layers = lowrank.wrap_with(method, state.model, seed=training.seed)
    for layer in state.layers.values():
        layer.rebuild = training.rebuild_weights
    state.optimizer = method.optimizer(state.model, state.config.optimizer)
    state.begin_cycle(factors_count=not method.keeps_function)


def capture(state: TrainState) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The state as named tensors and facts, for RunFolder.save_checkpoint."""
    moments, numbers = optimizer_state.flatten(state.optimizer, state.trained)
    tensors = {
        "model": tied.own_tensors(state.model),
        "optimizer": moments,
        "start_factors": {
            f"{name}.{factor}": tensor
            for name, pair in state.start_factors.items()
            for factor, tensor in zip("BA", pair, strict=True)
        },
    }
    facts = {
        "low_rank": bool(state.layers),
        "cycle": state.cycle,
        "cycle_start": state.cycle_start,
        "wrapping": state.wrapping,
        "optimizer": numbers,
        "diverged": state.diverged,
    }
    return tensors, facts


def restore(state: TrainState, tensors: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
    """Bring an initial state to where `capture` was called."""
    if facts["low_rank"] and state.config.low_rank:
        begin_low_rank(state, state.config.low_rank)
    tied.load_own_tensors(state.model, tensors["model"])
    optimizer_state.restore(state.optimizer, state.trained, dict(tensors["optimizer"]), facts.get("optimizer", {}))
    saved, device = tensors["start_factors"], state.config.training.device
    names = sorted({key.rpartition(".")[0] for key in saved})
    state.start_factors = {n: (saved[f"{n}.B"].to(device), saved[f"{n}.A"].to(device)) for n in names}
    state.step, state.cycle, state.cycle_start = facts["step"], facts["cycle"], facts["cycle_start"]
    state.wrapping, state.diverged = facts.get("wrapping", {}), facts["diverged"]
