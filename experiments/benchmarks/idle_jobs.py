"""Imported by what workers are forked from, or by a Ray worker: every job is done at once, and leaves nothing."""

from collections.abc import Callable
from pathlib import Path

from relora_lab.launch import worker
from relora_lab.launch.jobs import Job
from relora_lab.launch.worker import Outcome


def _do(job: Job, out: Path, tell: Callable[[Path], None]) -> Outcome:  # noqa: ARG001
    return Outcome("done")


def begin() -> None:
    """Called by a Ray worker as it starts; the import has done it all."""


worker.do = _do
