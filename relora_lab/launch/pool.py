"""Worker processes of this machine, long-lived and forked from a server that has imported all they need."""

import multiprocessing
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path
from typing import Any

from relora_lab.launch import worker
from relora_lab.launch.jobs import Job
from relora_lab.launch.worker import Outcome, Ready
from relora_lab.runs import RunFolder


class Hand:
    """A worker process, the job it is at, and the folder in which that shows."""

    def __init__(self, context: Any, out: Path) -> None:
        self._context, self._out = context, out
        self.job: Job | None = None
        self.folder: RunFolder | None = None
        self._start_process()

    def _start_process(self) -> None:
        self._ready = False
        self.connection, theirs = self._context.Pipe()
        self.process = self._context.Process(target=worker.work, args=(theirs, self._out), daemon=True)
        self.process.start()
        theirs.close()

    def begin(self, job: Job) -> None:
        """Give the worker a job. If it is dead, that shows in `answer`."""
        self.job, self.folder = job, RunFolder(self._out / job.name) if job.kind == "cell" else None
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
        else:
            self.folder = RunFolder(said)
        return None

    def _replace(self) -> None:
        code = self.process.exitcode
        if not self._ready and code is not None and code > 0:
            raise RuntimeError(
                f"worker processes end (exit {code}) before they begin; a script that trains a grid needs its call "
                "under if __name__ == '__main__':"
            )
        self._start_process()


class Pool:
    """So many workers."""

    def __init__(self, count: int, out: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(worker.PRELOAD)
        self.hands = [Hand(context, out) for _ in range(count)]

    def outcomes(self, timeout: float) -> Iterator[tuple[Hand, Outcome]]:
        """How jobs went, of the workers that say so within so many seconds."""
        by_connection = {hand.connection: hand for hand in self.hands}
        for ready in connection.wait(list(by_connection), timeout):
            hand = by_connection[ready]
            if (outcome := hand.answer()) is not None:
                yield hand, outcome

    def stop(self, received: list[int]) -> None:
        """Let every worker save its state and end; another signal in `received` kills those that have not."""
        before = len(received)
        for hand in self.hands:
            if hand.job:
                hand.process.terminate()
            hand.connection.close()
        while alive := [hand.process for hand in self.hands if hand.process.is_alive()]:
            connection.wait([process.sentinel for process in alive], timeout=0.5)
            if len(received) > before:
                for process in alive:
                    process.kill()
