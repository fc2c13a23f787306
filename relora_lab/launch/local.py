"""A grid on this machine: worker processes, long-lived and forked from a server that has imported all they need."""

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path
from typing import Any

from relora_lab.launch import engine, worker
from relora_lab.launch.driver import drive
from relora_lab.launch.engine import Task
from relora_lab.launch.jobs import Job
from relora_lab.launch.worker import Outcome, Ready
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig


def launch(cells: Mapping[str, RunConfig], out: Path, *, workers: int, title: str = "grid") -> dict[str, str]:
    """Train every cell into out/name with so many processes here; see `drive`.

    Of several GPUs "cuda" is one for each process in turn.
    """
    return drive(cells, Pool(out, workers), title)


class Pool:
    """An engine of so many workers, which start as they are needed."""

    def __init__(self, out: Path, workers: int) -> None:
        self.out, self._workers, self.trouble = out, workers, ""
        self._hands: list[Hand] = []

    @property
    def tasks(self) -> list[Task]:
        return [hand.task for hand in self._hands if hand.task]

    @property
    def room(self) -> int:
        return self._workers - len(self.tasks)

    def start(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(worker.PRELOAD)

    def begin(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            idle = next((hand for hand in self._hands if not hand.task), None)
            if idle is None:
                idle = Hand(self._context, self.out, len(self._hands))
                self._hands.append(idle)
            idle.begin(job)

    def outcomes(self) -> Iterator[tuple[Task, Outcome]]:
        by_connection = {hand.connection: hand for hand in self._hands}
        for ready in connection.wait(list(by_connection), timeout=0.5):
            hand = by_connection[ready]
            if (outcome := hand.answer()) is not None and hand.task:
                task, hand.task = hand.task, None
                yield task, outcome

    def stop(self, received: list[int]) -> None:
        before = len(received)
        for hand in self._hands:
            if hand.task:
                hand.process.terminate()
            hand.connection.close()
        while alive := [hand.process for hand in self._hands if hand.process.is_alive()]:
            connection.wait([process.sentinel for process in alive], timeout=0.5)
            if len(received) > before:
                for process in alive:
                    process.kill()


class Hand:
    """A worker process, and what it is at."""

    def __init__(self, context: Any, out: Path, number: int) -> None:
        self._context, self._out, self._number = context, out, number
        self.task: Task | None = None
        self._start_process()

    def _start_process(self) -> None:
        self._ready = False
        self.connection, theirs = self._context.Pipe()
        arguments = theirs, self._out, self._number
        self.process = self._context.Process(target=worker.work, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def begin(self, job: Job) -> None:
        """Give the worker a job. If it is dead, that shows in `answer`."""
        self.task = engine.begun(job, self._out)
        with suppress(OSError):
            self.connection.send(job)

    def answer(self) -> Outcome | None:
        """What the worker answered; of one that died "died", after another took its place. None is no end yet."""
        try:
            said: worker.Answer = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            self._replace()
            return Outcome("died")
        if isinstance(said, Outcome):
            return said
        if isinstance(said, Ready):
            self._ready = True
        elif self.task:
            self.task.folder = RunFolder(said)
        return None

    def _replace(self) -> None:
        code = self.process.exitcode
        if not self._ready and code is not None and code > 0:
            raise RuntimeError(
                f"worker processes end (exit {code}) before they begin; a script that trains a grid needs its call "
                "under if __name__ == '__main__':"
            )
        self._start_process()
