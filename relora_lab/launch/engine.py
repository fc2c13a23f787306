"""What the driver of a grid asks of those who do its jobs: local.py, ray.py and slurm.py answer."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from relora_lab.launch.jobs import Job
from relora_lab.launch.worker import Outcome
from relora_lab.runs import RunFolder


@dataclass(eq=False)
class Task:
    """A job that has been given out, and the folder in which it shows: of a stage, once its worker has said which."""

    job: Job
    folder: RunFolder | None = None

    @property
    def step(self) -> int:
        """Of the newest state that there is."""
        return self.folder.checkpoint_step if self.folder else 0


class Engine(Protocol):
    """Does jobs for the runs below `out`, in worker processes somewhere."""

    out: Path
    trouble: str  # what keeps jobs from being done, for people; empty if nothing does

    @property
    def tasks(self) -> Collection[Task]:
        """What has been given out and has no outcome yet."""

    @property
    def room(self) -> int:
        """How many more jobs can be given out now."""

    def start(self) -> None:
        """Get ready: the grid has been declared in `out`."""

    def begin(self, jobs: Sequence[Job]) -> None:
        """Give out jobs, for which there is room."""

    def outcomes(self) -> Iterator[tuple[Task, Outcome]]:
        """Wait for a moment, and say how tasks went that are over. Raises BadInput where no job can be done."""

    def stop(self, received: list[int]) -> None:
        """Nothing more is given out. If signals were received let every worker save its state and end.

        A signal that is added to `received` meanwhile kills those that have not.
        """


def begun(job: Job, out: Path) -> Task:
    """The task of a job for the runs below `out`."""
    return Task(job, RunFolder(out / job.name) if job.kind == "cell" else None)
