"""Stages: the beginnings that several runs share.

A stage is a run that stops at a step `cut` of its schedule, in a run folder below .stages/ whose name is a digest of
all that determines its bits and logs. The full run of a seed and every warm start from it pass through the same
stages, so a warm start *is* the prefix of the full run; a longer one begins where a shorter one ended. Runs of a grid
that differ only in what a restart does share the low-rank phase up to their first restart too.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from relora_lab.config import as_table
from relora_lab.methods import full, lora
from relora_lab.methods._options import LowRankOptions
from relora_lab.settings import RunConfig

NEVER = 10**9
UNRESTARTED: dict[str, Any] = {
    "restart_every": NEVER,
    "restart_warmup": 0,
    "jagged": False,
    "optimizer_reset": "none",
    "reset_ratio": 0.99,
    "reset_mask": "shared",
    "reset_params": "AB",
}
MAKES_LAYERS = ("split", "layer", "optimizer", "keeps_function", "rescales")  # hooks of LowRankOptions


def cuts(config: RunConfig) -> list[int]:
    """The steps at which a run's full-rank part is cut: the end of its warm start, and its reference step."""
    training = config.training
    return sorted(step for step in {training.warm_start, training.reference} if 0 < step <= _full_rank_steps(config))


def stage_config(config: RunConfig, cut: int) -> RunConfig:
    """The run that begins as `config` does up to `cut`; its reference is that of the run, or `cut` if that is later.

    It ends before snapshots are due, so it has none: their period does not decide which stage it is.
    """
    reference = min(config.training.reference, cut)
    begun = replace(
        config, name=None, training=replace(config.training, reference_step=reference, snapshot_every=None)
    )
    if config.low_rank and cut > config.training.warm_start:
        return replace(begun, method=unrestarted(config.low_rank))
    return replace(
        begun,
        method=full.Options(),
        optimizer=replace(config.optimizer, low_rank_lr=None),
        training=replace(begun.training, warm_start=0),
    )


def digest(stage: RunConfig, cut: int, text_sha256: str, made_with: Mapping[str, str]) -> str:
    """16 hex digits of all that determines a stage but where it is cut: one of the same digest can begin another."""
    table = as_table(stage)
    del table["training"]["checkpoint_every"]
    if stage.training.reference == cut:
        del table["training"]["reference_step"]  # it shows in no log of the stage
    facts = {"settings": table, "text_sha256": text_sha256, "made_with": made_with}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


# ---- a whole grid


@dataclass(frozen=True)
class Stage:
    """A stage of a grid, up to the last of `cuts`: its settings, and the cells that begin with it."""

    config: RunConfig
    cuts: tuple[int, ...]
    cells: tuple[str, ...]

    @property
    def start(self) -> int:
        """The step that an earlier stage ends at."""
        return ([0, *self.cuts])[-2]

    @property
    def updates(self) -> int:
        """Updates that the stage trains itself."""
        return self.cuts[-1] - self.start

    @property
    def name(self) -> str:
        """Which updates of which beginning, for people."""
        return f"{self.config.method_name} 0–{self.cuts[-1]}, seed {self.config.training.seed}"


def plan(cells: Mapping[str, RunConfig]) -> dict[str, Stage]:
    """The distinct stages that a grid's cells begin with, each after those that it begins with itself, by key.

    The full-rank part of every run is cut wherever one of them is; a low-rank phase where two or more part.
    """
    ends = {name: _end(config) for name, config in cells.items()}
    steps = sorted({step for config in cells.values() for step in cuts(config)} | set(ends.values()))
    keys = {
        (name, step): _key(config, step) for name, config in cells.items() for step in steps if 0 < step <= ends[name]
    }
    sharing = Counter(keys.values())
    wanted = {keys[name, step] for name, config in cells.items() for step in cuts(config)}
    wanted |= {key for (name, step), key in keys.items() if step == ends[name] and sharing[key] > 1}
    found: dict[str, Stage] = {}
    for name, config in cells.items():
        ends_at = [step for step in steps if keys.get((name, step)) in wanted]
        for number, step in enumerate(ends_at, 1):
            key = keys[name, step]
            stage = found.get(key) or Stage(stage_config(config, step), tuple(ends_at[:number]), ())
            found[key] = replace(stage, cells=(*stage.cells, name))
    return found


def by_cell(plan: Mapping[str, Stage]) -> dict[str, list[str]]:
    """The keys of the stages that each cell begins with, in order; none for cells that are not there."""
    found: dict[str, list[str]] = defaultdict(list)
    for key, stage in sorted(plan.items(), key=lambda item: item[1].cuts[-1]):
        for name in stage.cells:
            found[name].append(key)
    return found


def _key(config: RunConfig, cut: int) -> str:
    """What tells the stages of a grid apart before its text is read."""
    return f"{digest(stage_config(config, cut), cut, '', {})}-{cut}"


def _end(config: RunConfig) -> int:
    """The last step up to which a run can be a stage: before it ends, restarts, or keeps weights on the way."""
    snapshots = config.training.snapshot_steps
    last = min(config.training.steps, snapshots[0] if snapshots else NEVER) - 1
    if not config.low_rank:
        return min(last, _full_rank_steps(config))
    method, begin = config.low_rank, config.training.warm_start
    happens = (t for t in range(1, last - begin + 1) if method.merges_after(t) or method.restarts_after(t))
    return begin + next(happens, last - begin + 1) - 1


def _full_rank_steps(config: RunConfig) -> int:
    """How many updates of a run are AdamW's at full rank, short of all: a method with an optimizer of its own
    begins in its own way."""
    if config.low_rank:
        return config.training.warm_start
    return config.training.steps - 1 if isinstance(config.method, full.Options) else 0


def unrestarted(method: LowRankOptions) -> LowRankOptions:
    """A method that is the same up to the first merge or restart: LoRA, for all that make their layers as it does."""
    if all(getattr(type(method), hook) is getattr(LowRankOptions, hook) for hook in MAKES_LAYERS):
        base = replace(lora.Options(rank=method.rank), alpha=method.alpha, base=method.base, quantise=method.quantise)
        return replace(base, **UNRESTARTED)
    return replace(method, **UNRESTARTED)
