"""What the trainer's loop takes beside a bare loop of the same updates."""

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.benchmarks import training
from experiments.benchmarks.sides import AGREE_LOSS, agree
from relora_lab import config, data, train
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig
from relora_lab.workspace import token_cache

STEPS = 100, 1100  # the difference is timed: what a run does once is in both
# As small as can be: what the machine's speed changes by from run to run is a share of the step.
MODEL = {"size": "demo", "hidden": 8, "intermediate": 16, "heads": 1, "layers": 1}
BATCH, SEQUENCE = 1, 16


def overhead(given: argparse.Namespace, folder: Path) -> float:
    """Milliseconds a step that the trainer takes more than a bare loop: the median of turns."""
    text, (few, many) = random_letters(folder / "letters.txt"), STEPS
    more = []
    for turn in range(given.repeats):
        start, _ = in_trainer(text, folder / f"few-{turn}", few, given)
        whole, loss = in_trainer(text, folder / f"many-{turn}", many, given)
        seconds, expected = in_bare_loop(text, folder, given)
        agree("trainer", "bare loop", "the loss", abs(loss / expected - 1), AGREE_LOSS["float32"])
        more.append(1e3 * (whole - start - seconds) / (many - few))
    return statistics.median(more)


def random_letters(path: Path) -> Path:
    """A text for the runs."""
    letters = np.random.default_rng(0).integers(ord("a"), ord("z") + 1, size=2**16, dtype=np.uint8)
    path.write_bytes(letters.tobytes())
    return path


def settings(text: Path, steps: int, given: argparse.Namespace) -> RunConfig:
    """A run of so many updates that logs each, and does all else once."""
    never = 10**9
    return config.parse(
        {
            "model": MODEL,
            "data": {"corpus": str(text), "sequence_length": SEQUENCE, "batch_size": BATCH},
            "method": {"name": "full"},
            "training": {
                "steps": steps,
                "device": given.device,
                "threads": given.threads,
                "eval_tokens": SEQUENCE,
                "eval_every": never,
                "norms_every": never,
                "checkpoint_every": never,
            },
            "optimizer": {"lr": 1e-4, "min_ratio": 1.0},  # the same at every length
        }
    )


def in_trainer(text: Path, out: Path, steps: int, given: argparse.Namespace) -> tuple[float, float]:
    """Seconds of a whole run, and the loss of its last update."""
    run = settings(text, steps, given)
    seconds, folder = training.timed(lambda: train.run(run, out), given.device, given.clock)
    return seconds, RunFolder(folder).logs.read("metrics")[-1]["loss"]


def in_bare_loop(text: Path, runs: Path, given: argparse.Namespace) -> tuple[float, float]:
    """Seconds of the updates between the two lengths, their batches made before, and the loss of the last."""
    few, many = STEPS
    run = settings(text, many, given)
    corpus = data.open_corpus(run.data, token_cache(runs), sequence_length=SEQUENCE)
    state, objective = training.begin(run, corpus)
    batches = [objective.batch(step).to(given.device) for step in range(many)]
    trained = list(state.model.parameters())

    def steps(some: list[Tensor]) -> Tensor:
        for batch in some:
            loss = objective.loss(state.model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, run.optimizer.clip)
            state.optimizer.step()
            state.optimizer.zero_grad()
        return loss.detach()

    steps(batches[:few])
    seconds, loss = training.timed(lambda: steps(batches[few:]), given.device, given.clock)
    return seconds, float(loss)
