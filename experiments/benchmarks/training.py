"""What the benchmarks of training share: random tokens, a run that begins, a timed step, a peak of its own."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from relora_lab import config, environment, process, tokenizer
from relora_lab import state as states
from relora_lab.data import Corpus
from relora_lab.objective import LanguageModelling
from relora_lab.settings import RunConfig
from relora_lab.state import TrainState

Clock = Literal["cpu", "wall"]
Found = TypeVar("Found")


def settings(
    given: argparse.Namespace,
    model: dict[str, Any],
    method: dict[str, Any],
    precision: str,
    batch: int,
    micro_batch: int,
    **options: Any,
) -> RunConfig:
    """A run of `batch` sequences an update, that never comes to its end, in parts of `micro_batch`.

    `options` are more settings of [training].
    """
    training = {
        "steps": 10**7,
        "device": given.device,
        "precision": precision,
        "micro_batches": batch // micro_batch,
        "eval_tokens": given.sequence,
        **options,
    }
    return config.parse(
        {
            "model": model,
            "data": {"sequence_length": given.sequence, "batch_size": batch},
            "method": method,
            "training": training,
            "optimizer": {"lr": 1e-4},
        }
    )


def random_text(folder: Path, vocabulary: int, tokens: int) -> Corpus:
    """A corpus of random tokens: what they are costs nothing."""
    drawn = np.random.default_rng(0).integers(vocabulary, size=tokens).astype(tokenizer.token_type(vocabulary))
    for part in ("train", "held_out"):
        drawn.tofile(folder / f"{part}.bin")
    return Corpus(folder, vocabulary, "random")


def begin(run: RunConfig, corpus: Corpus) -> tuple[TrainState, LanguageModelling]:
    """A model in training, low-rank from the start."""
    objective, state = LanguageModelling(run, corpus), states.initial(run, corpus.vocab_size)
    if run.low_rank:
        states.begin_low_rank(state, run.low_rank)
    state.model.train()
    return state, objective


def own_clock(device: str) -> Clock:
    """CPU time, which a busy machine disturbs least, where it is the CPU that computes."""
    return "cpu" if device == "cpu" else "wall"


def timed(work: Callable[[], Found], device: str, clock: Clock) -> tuple[float, Found]:
    """Seconds of a call, until the device is done, and what it returned."""
    read = {"cpu": time.process_time, "wall": time.perf_counter}[clock]
    synchronise(device)
    started = read()
    found = work()
    synchronise(device)
    return read() - started, found


def synchronise(device: str) -> None:
    """Wait until the device has nothing more to do."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def peak(libraries: Callable[[], Any], begin_steps: Callable[[], Callable[[], Any]], device: str) -> int:
    """Bytes that three steps take at most, in this process, model and all; `libraries` are loaded before."""
    libraries()
    process.reset_peak(device)
    before = process.peak_bytes(device)
    step = begin_steps()
    for _ in range(3):
        step()
    return process.peak_bytes(device) - (before if device == "cpu" else 0)


def peak_alone(module: str, arguments: list[str], of: dict[str, Any]) -> int:
    """The peak that `module` prints with --peak-of, in a process of its own."""
    command = [sys.executable, "-m", module, *arguments, "--peak-of", json.dumps(of)]
    variables = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # so that what is freed goes back
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=variables).stdout)


def machine(device: str) -> dict[str, str]:
    """What it ran on."""
    found = {"processor": platform.processor(), **environment.fingerprint(device)}
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found["processor"] = next((line for line in lines if line.startswith("model name")), "").partition(": ")[2]
    return found
