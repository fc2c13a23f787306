"""A grid on a Ray cluster: a task a job, with the CPUs and GPUs that it asks for."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from relora_lab.errors import BadInput, one_line
from relora_lab.launch import engine, remote
from relora_lab.launch.driver import drive
from relora_lab.launch.engine import Task
from relora_lab.launch.jobs import Job
from relora_lab.launch.worker import Outcome
from relora_lab.optional import library
from relora_lab.settings import RunConfig


def launch(cells: Mapping[str, RunConfig], out: Path, *, workers: int = 100, title: str = "grid") -> dict[str, str]:
    """Train every cell into out/name, at most so many at a time, on the Ray cluster; see `drive`.

    It is the one that RAY_ADDRESS names or that runs on this machine; where there is none, Ray starts one here.
    Who was in `ray.init` before stays there. Raises BadInput without Ray.
    """
    ray = library("ray", "ray", "--on ray")
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(log_to_driver=False, logging_level="error", include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise BadInput(f"--on ray: {one_line(error)}") from None
    try:
        return drive(cells, Cluster(ray, out, workers), title)
    finally:
        if ours:
            ray.shutdown()


class Cluster:
    """An engine of so many tasks at a time. Retries are the driver's: it knows whether a job gets on."""

    def __init__(self, ray: Any, out: Path, workers: int) -> None:
        self._ray, self.out, self._workers, self.trouble = ray, out, workers, ""
        # A worker that had a GPU ends with its task, to let go of it.
        self._do = [ray.remote(max_retries=0, max_calls=calls)(remote.do) for calls in (0, 1)]
        self._tasks: dict[Any, Task] = {}  # by the reference to what its worker will return

    @property
    def tasks(self) -> list[Task]:
        return list(self._tasks.values())

    @property
    def room(self) -> int:
        return self._workers - len(self._tasks)

    def start(self) -> None:
        self._words = remote.Words(self.out)

    def begin(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._words.forget(job)
            cpus, gpus = remote.resources(job)
            self._check_nodes(cpus, gpus)
            do = self._do[gpus].options(num_cpus=cpus, num_gpus=gpus, name=job.name)
            self._tasks[do.remote(job, self._words.place)] = engine.begun(job, self.out)

    def outcomes(self) -> Iterator[tuple[Task, Outcome]]:
        references = list(self._tasks)
        self._ray.wait(references, timeout=0.5)  # for one
        ready, running = self._ray.wait(references, num_returns=len(references), timeout=0)
        for reference in ready:
            self.trouble, outcome = "", self._outcome(reference)
            self._words.hear(self._tasks[reference])
            yield self._tasks.pop(reference), outcome
        for reference in running:
            if self._tasks[reference].folder is None:
                self._words.hear(self._tasks[reference])

    def stop(self, received: list[int]) -> None:
        before, force = len(received), False
        while self._tasks:
            for reference in self._tasks:
                self._ray.cancel(reference, force=force)
            references = list(self._tasks)
            ready, _ = self._ray.wait(references, num_returns=len(references), timeout=0.5)
            for reference in ready:
                del self._tasks[reference]
            force = len(received) > before
        self._words.close(over=not received)

    def _check_nodes(self, cpus: int, gpus: int) -> None:
        """Say so if no node can do what needs so many; the cluster may still grow."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            self.trouble = f"no node of the Ray cluster has {cpus} CPUs and {gpus} GPUs; waiting for one that has"

    def _outcome(self, reference: Any) -> Outcome:
        errors = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(reference)
            return outcome
        except errors.TaskCancelledError:
            return Outcome("stopped")
        except errors.RayTaskError as error:  # not one of training: those are outcomes
            if isinstance(error.cause, BadInput):  # another folder
                raise error.cause from None
            return Outcome("failed", one_line(error.cause))
        except errors.RayError as error:  # its worker or its node is gone
            return Outcome("died", type(error).__name__)
