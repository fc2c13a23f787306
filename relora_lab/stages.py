"""Stages: the full-rank beginnings that several runs share.

A stage is a full-rank run that stops at a step `cut` of its schedule, in a run folder below .stages/ whose name is
a digest of all that determines its bits and logs. The full run of a seed and every warm start from it pass through
the same stages, so a warm start *is* the prefix of the full run; a longer one begins where a shorter one ended.
"""

import hashlib
import json
from dataclasses import replace

from relora_lab import environment
from relora_lab.config import as_table
from relora_lab.methods import full
from relora_lab.settings import RunConfig


def cuts(config: RunConfig) -> list[int]:
    """The steps at which a run's full-rank part is cut: the end of its warm start, and its reference step."""
    training = config.training
    if not (config.low_rank or isinstance(config.method, full.Options)):
        return []  # a method with an optimizer of its own begins in its own way
    full_rank_steps = training.warm_start if config.low_rank else training.steps - 1
    return sorted({step for step in (training.warm_start, training.reference) if 0 < step <= full_rank_steps})


def stage_config(config: RunConfig, cut: int) -> RunConfig:
    """The full-rank run that begins as `config` does; its reference is that of the run, or `cut` if that is later.

    It ends before snapshots are due, so it has none: their period does not decide which stage it is.
    """
    training = config.training
    return replace(
        config,
        name=None,
        method=full.Options(),
        optimizer=replace(config.optimizer, low_rank_lr=None),
        training=replace(training, warm_start=0, reference_step=min(training.reference, cut), snapshot_every=None),
    )


def digest(stage: RunConfig, cut: int, text_sha256: str) -> str:
    """16 hex digits of all that determines a stage but where it is cut: one of the same digest can begin another."""
    table = as_table(stage)
    del table["training"]["checkpoint_every"]
    if stage.training.reference == cut:
        del table["training"]["reference_step"]  # it shows in no log of the stage
    made_with = environment.fingerprint(stage.training.device)
    facts = {"settings": table, "text_sha256": text_sha256, "made_with": made_with}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
