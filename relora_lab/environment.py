"""What a run was made with, and what of that decides its bits."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import relora_lab
from relora_lab import pretrained, processes, quantise
from relora_lab.data import Corpus
from relora_lab.errors import require
from relora_lab.examples import Examples
from relora_lab.memory.held import GIB
from relora_lab.memory.phases import peak
from relora_lab.settings import RunConfig


def made_with(config: RunConfig) -> dict[str, Any]:
    """What decides the bits of a run beside its settings: libraries, device, instruction set, several processes, and
    the weights it begins with."""
    quantised = bool(config.low_rank and config.low_rank.quantise)
    found: dict[str, Any] = fingerprint(config.training.device, *(["bitsandbytes"] if quantised else []))
    if config.model.weights is not None:
        found["weights_sha256"] = pretrained.identity(config.model)
    return found | ({"processes": processes.count()} if processes.count() > 1 else {})


def fingerprint(device: str, *also: str) -> dict[str, str]:
    """Versions of the libraries that compute, `also` of more, and what they compute on."""
    libraries = {name: importlib.metadata.version(name) for name in ("numpy", "torch", "transformers", *also)}
    libraries["relora_lab"] = relora_lab.__version__
    if torch.device(device).type == "cuda":
        return {**libraries, "device": torch.cuda.get_device_name(device)}
    return {**libraries, "device": "cpu", "cpu_capability": torch.backends.cpu.get_cpu_capability()}


def facts(config: RunConfig, read: Corpus | Examples, before: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is made with, and what its warm_start/ is: init, pretrained, warm start, or a snapshot.

    `before` is what was written when it began; a run that went on elsewhere is no longer bit-identical.
    """
    training = config.training
    decisive: dict[str, Any] = made_with(config) | {"threads": training.threads}
    begun_with = {"processes": 1, **before} if before else decisive
    same = all(begun_with.get(key, value) == value for key, value in ({"processes": 1} | decisive).items())
    total, trained = config.parameters(read.vocab_size)
    begun_from = "init" if config.model.weights is None else "pretrained"
    later = "warm start" if training.reference == training.warm_start else "snapshot"
    return {
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **decisive,
        "bit_identical": before.get("bit_identical", True) and same,
        "corpus": {
            "text_sha256": read.text_sha256,
            "tokenizer": config.data.tokenizer,
            "vocab_size": read.vocab_size,
            **read.facts,
        },
        "parameters": {"total": total, "trained": trained},
        "warm_start": begun_from if training.reference == 0 else later,
    }


def needs(config: RunConfig) -> tuple[Any, ...]:
    """What of a machine a run needs: its device, the kind of codes that a library makes, weights to begin with."""
    return config.training.device, config.low_rank.quantise if config.low_rank else None, config.model


def check(config: RunConfig) -> None:
    """Raise BadInput for a device or library that the run needs and that is not here."""
    device, codes, _ = needs(config)
    if codes:
        quantise.require_library(codes)
    if device != "cpu":
        device, count = processes.own_device(device), torch.cuda.device_count()
        number = int(device.partition(":")[2] or 0)
        found = f"{count} here" if count else "no GPU here (training.device=cpu; of a grid --profile cpu)"
        require(number < count, f"training.device: '{device}' is asked for; torch finds {found}")
    pretrained.check(config, config.data.vocabulary)
    _check_memory(config)


def _check_memory(config: RunConfig) -> None:
    """Raise BadInput for a run whose tensors alone are more than the machine has: it would be killed, or swap."""
    if config.training.device != "cpu" or config.data.vocabulary is None or processes.count() > 1:
        return  # a GPU says so itself, at once
    if config.task:
        return  # no plan is made of it
    here = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    needs = 8 * config.data.batch_size * config.data.sequence_length / GIB  # the batch; what trains on it takes more
    if needs <= here:
        needs += peak(config)[1].total / GIB
    require(
        needs <= here,
        f"model.size, data.batch_size: training takes {needs:,.0f} GiB of memory, and this machine has {here:,.0f}; "
        "`relora-lab plan` shows what takes it",
    )


def _git_commit() -> str | None:
    """The commit of relora_lab's own checkout, if it runs from one."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        return None  # no git here
