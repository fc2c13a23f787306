"""What a grid has to do, as jobs that wait for each other: the tokens of a text, stages, cells.

Jobs know nothing of where they are done. What is done lies on disk: jobs made anew from the same cells leave out
what has ended, so a grid that was killed at any time goes on from there.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from relora_lab import stages
from relora_lab.errors import BadInput
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig

Kind = Literal["tokens", "stage", "cell"]
DEATHS = 10  # of processes that do a job, with no newer state left behind, before the job counts as failed


@dataclass(frozen=True)
class Job:
    """Something to do once, known by `key` (of a cell its name); `needs` are the keys of jobs to be done before.

    It trains from step `start` to `end`; a cell that shared nothing would make `alone` updates.
    """

    kind: Kind
    key: str
    name: str
    config: RunConfig
    cuts: tuple[int, ...] = ()
    needs: tuple[str, ...] = ()
    start: int = 0
    end: int = 0
    alone: int = 0


def of_grid(cells: Mapping[str, RunConfig], plan: Mapping[str, stages.Stage], out: Path) -> list[Job]:
    """The jobs that the cells which have not ended in `out` need, each after those that it needs.

    `plan` is that of stages.plan.
    """
    jobs: dict[str, Job] = {}
    begins = stages.by_cell(plan)
    for name, config in cells.items():
        folder = RunFolder(out / name)
        with suppress(BadInput):  # a damaged status is for the worker to say
            if folder.ended:
                continue
        tokens = Job("tokens", _data_of(config), f"tokens of {_source(config)}", config)
        jobs.setdefault(tokens.key, tokens)
        needs = tokens.key
        for key in [] if folder.has_checkpoint else begins[name]:
            stage = plan[key]
            of_stage = stage.config, stage.cuts, (needs,), stage.start, stage.cuts[-1]
            jobs.setdefault(key, Job("stage", key, stage.name, *of_stage))
            needs = key
        cuts = tuple(plan[key].cuts[-1] for key in begins[name])
        start = max([folder.checkpoint_step, *cuts])
        end = config.training.steps
        jobs[name] = Job("cell", name, name, config, cuts, (needs,), start, end, end - folder.checkpoint_step)
    return list(jobs.values())


def saved(jobs: Iterable[Job]) -> str:
    """What sharing saves, in a sentence; empty where there is nothing to do."""
    jobs = list(jobs)
    alone, trained = sum(job.alone for job in jobs), sum(job.end - job.start for job in jobs)
    percent = 100 * (alone - trained) / max(1, alone)
    return f"Sharing saves {alone - trained:,} of {alone:,} updates ({percent:.0f} %)." if alone else ""


def _source(config: RunConfig) -> str | list[str]:
    """What is read, for people."""
    return config.task.name if config.task else config.data.dataset or config.data.corpus


def _data_of(config: RunConfig) -> str:
    """What tells apart the data that runs read; two that read the same need its tokens once."""
    facts = {name: value for name, value in asdict(config.data).items() if name != "batch_size"}
    if config.task:
        facts |= {"task": config.task.name, "text_to_text": config.model.is_t5}
    if config.data.tokenizer == "model":
        facts["weights"] = config.model.weights
    return json.dumps(facts)


class Schedule:
    """Which job is next. A job is given out once, and again if who did it died or was not let in."""

    def __init__(self, jobs: list[Job]) -> None:
        self._jobs = {job.key: job for job in jobs}
        self._waiting = dict.fromkeys(self._jobs)
        self._not_before: dict[str, float] = {}
        self._done: set[str] = set()
        self._deaths: dict[str, tuple[int, int]] = {}  # the furthest step, and how often since
        self.failures: dict[str, str] = {}

    @property
    def left(self) -> bool:
        """Is there a job that is not done and has not failed?"""
        return len(self._done) + len(self.failures) < len(self._jobs)

    def next(self) -> Job | None:
        """The first job whose needs are done, which is then given out; None while there is none."""
        now = time.monotonic()
        for key in self._waiting:
            job = self._jobs[key]
            if self._done.issuperset(job.needs) and self._not_before.get(key, now) <= now:
                del self._waiting[key]
                return job
        return None

    def done(self, job: Job) -> None:
        """The job is done."""
        self._done.add(job.key)

    def failed(self, job: Job, reason: str) -> Iterator[tuple[Job, str]]:
        """The job failed; with it, all that need it: yields each, with the reason."""
        self.failures[job.key] = reason
        yield job, reason
        for key in [key for key in self._waiting if job.key in self._jobs[key].needs]:
            if key in self._waiting:  # it may need another one of those that just failed
                del self._waiting[key]
                yield from self.failed(self._jobs[key], reason)

    def again(self, job: Job, seconds: float = 0.0) -> None:
        """Give the job out again, in so many seconds at the earliest."""
        self._not_before[job.key] = time.monotonic() + seconds
        self._waiting = {key: None for key in self._jobs if key in self._waiting or key == job.key}

    def may_die(self, job: Job, step: int) -> bool:
        """Who did the job died, and its newest state is of `step`. Is it worth another try?"""
        furthest, deaths = self._deaths.get(job.key, (-1, 0))
        deaths = 1 if step > furthest else deaths + 1
        self._deaths[job.key] = max(step, furthest), deaths
        return deaths < DEATHS
