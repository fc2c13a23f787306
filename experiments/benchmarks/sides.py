"""The sides of the benchmark of a step: ours and the peers, how each begins, and whether they find the same."""

import argparse
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from experiments.benchmarks import peers, training
from relora_lab import lowrank, seeds
from relora_lab.data import Corpus
from relora_lab.settings import RunConfig
from relora_lab.update import update

OURS = ("full", "relora")
AGREE_LOSS = {"float32": 1e-4, "bf16-autocast": 1e-2}  # relative
AGREE_GRADIENT = {"float32": 1e-4, "bf16-autocast": 5e-2}  # of the tensor's largest entry
START_B = 0.01  # standard deviation; with B = 0 no gradient would reach A


@dataclass(frozen=True)
class Side:
    """What is timed: ours (full, relora) or a peer, at a rank (None: no rank)."""

    method: str
    rank: int | None = None
    compiled: bool = False

    def __str__(self) -> str:
        return " ".join([self.method, *([str(self.rank)] if self.rank else []), *["compiled"] * self.compiled])


class Ours:
    """This project's model in training, as a peer's Loop is used."""

    def __init__(self, run: RunConfig, corpus: Corpus) -> None:
        self._state, self._objective = training.begin(run, corpus)
        self.model: nn.Module = self._state.model

    def loss(self) -> Tensor:
        """The loss of the next batch."""
        batch = self._objective.batch(self._state.step).to(self._state.config.training.device)
        return self._objective.loss(self.model, batch)

    def step(self) -> float:
        """An optimizer step; the loss before it."""
        return update(self._state, self._objective).loss


Begun = Ours | peers.Loop


def of_case(case: str, given: argparse.Namespace) -> list[Side]:
    """The sides of a case, in their turns: who is compared is near."""
    found = [Side("full"), Side("transformers")]
    if case != "vocabulary":
        found += [Side(method, rank) for rank in given.ranks for method in ("relora", "peft", *peers.DROPOUT)]
    return found + [replace(side, compiled=True) for side in found if given.compile and side.method in OURS]


def pairs(case: str, given: argparse.Namespace) -> list[tuple[Side, Side]]:
    """Which of them are compared."""
    found = [(Side("full"), Side("transformers"))]
    if case != "vocabulary":
        for rank in given.ranks:
            against = [Side("full"), *(Side(method, rank) for method in ("peft", *peers.DROPOUT))]
            found += [(Side("relora", rank), peer) for peer in against]
    return found + [(side, replace(side, compiled=False)) for side in of_case(case, given) if side.compiled]


def reference(side: Side) -> Side | None:
    """Ours that a side has to agree with."""
    if side.method == "textbook+dropout":
        return None
    ours = Side("relora", side.rank) if side.rank else Side("full")
    return ours if side != ours else None


# ---- how they begin


def settings(side: Side, given: argparse.Namespace, model: dict[str, Any], precision: str) -> RunConfig:
    """The run that a side is, or whose weights and batches it has."""
    method = {"name": "relora", "rank": side.rank, "restart_every": 10**6} if side.rank else {"name": "full"}
    batch = given.micro_batch
    return training.settings(given, model, method, precision, batch, batch, compile=side.compiled)


def begin(side: Side, run: RunConfig, corpus: Corpus) -> Begun:
    """A side before its first step."""
    ours = side.method in OURS
    begun: Begun = Ours(run, corpus) if ours else peers.begin(side.method, side.rank, run, corpus)
    draw_factors(begun.model)
    return begun


@torch.no_grad()
def draw_factors(model: nn.Module) -> None:
    """A and B that are a function of their name and shape, whatever the side."""
    for name, parameter in peers.trained(model).items():
        generator, shape = seeds.generator(0, "benchmark", name), tuple(parameter.shape)
        if name.endswith("lora_A"):
            parameter.copy_(lowrank.kaiming(shape, generator))
        elif name.endswith("lora_B"):
            parameter.copy_(START_B * torch.randn(shape, generator=generator))


# ---- do they find the same?


def gradients(side: Begun) -> dict[str, Tensor]:
    """The gradient of the next batch for all that is trained; nothing is left of it in the model."""
    side.loss().backward()
    found = {name: parameter.grad for name, parameter in peers.trained(side.model).items()}
    side.model.zero_grad()
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def gradient_errors(running: dict[Side, Begun], precision: str) -> dict[Side, float]:
    """The largest difference of each side's gradients from ours. Raises AssertionError where it is too large."""
    errors = {}
    for ours in (side for side in running if side.method in OURS and not reference(side)):
        expected = gradients(running[ours])
        for side in (side for side in running if reference(side) == ours):
            off = differences(gradients(running[side]), expected)
            worst = max(off, key=lambda name: off[name])
            errors[side] = off[worst]
            agree(side, ours, f"the gradient of {worst}", off[worst], AGREE_GRADIENT[precision])
    return errors


def differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """By tensor, the largest difference as a share of the largest entry; inf where only one side has it."""
    return dict.fromkeys(found.keys() ^ expected.keys(), float("inf")) | {
        name: float((found[name] - tensor).abs().max() / tensor.abs().max().clamp_min(1e-30))
        for name, tensor in expected.items()
        if name in found
    }


def loss_errors(losses: dict[Side, float], precision: str) -> dict[Side, float]:
    """The relative difference of each side's loss from ours. Raises AssertionError where it is too large."""
    errors = {}
    for side, loss in losses.items():
        ours = reference(side)
        if ours in losses:
            errors[side] = abs(loss / losses[ours] - 1)
            agree(side, ours, "the loss", errors[side], AGREE_LOSS[precision])
    return errors


def agree(side: object, ours: object, what: str, error: float, most: float) -> None:
    """Raise AssertionError, naming both sides, unless error ≤ most."""
    if not error <= most:  # NaN is not
        raise AssertionError(f"{side} and {ours} disagree in {what}: by {error:.1e}, at most {most:g}")
