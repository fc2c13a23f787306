"""Imported by the server that workers are forked from: every job is done at once, and nothing of it is left."""

from collections.abc import Callable
from pathlib import Path

from relora_lab.launch import worker
from relora_lab.launch.jobs import Job
from relora_lab.launch.worker import Outcome


def _do(job: Job, out: Path, tell: Callable[[Path], None]) -> Outcome:  # noqa: ARG001
    return Outcome("done")


worker.do = _do
