"""A grid in processes of this machine: long-lived workers, forked from a server that has imported all they need."""

import multiprocessing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import connection
from pathlib import Path
from typing import Any

from relora_lab import process, stages, status
from relora_lab.errors import Interrupted
from relora_lab.launch import jobs, worker
from relora_lab.launch.display import Display
from relora_lab.launch.jobs import Job, Schedule
from relora_lab.launch.worker import Outcome
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig

LOOK_AGAIN = 1.0  # seconds until a job that another process does is tried again


def launch(cells: Mapping[str, RunConfig], out: Path, *, workers: int, title: str = "grid") -> dict[str, str]:
    """Train every cell into out/name, what they share once, going on where each was left.

    Returns the failures' reasons by cell. A cell that fails does not stop the others, a diverged one is no failure,
    and one that another process trains is waited for. Everything that is known lies on disk: driver and workers can
    be killed at any time, and the same call goes on. Raises BadInput, before anything runs, for a cell whose folder
    holds other settings; Interrupted after SIGINT or SIGTERM, when every worker has saved its state.
    """
    plan = stages.plan(cells)
    status.declare(cells, plan, out)
    found = jobs.of_grid(cells, plan, out)
    schedule = Schedule(found)
    with (
        process.signals() as received,
        _pool(min(workers, len(found)), out) as pool,
        Display(title, cells, found, out) as display,
    ):
        while schedule.left and not received:
            _give_out(schedule, pool, display)
            for hand, outcome in pool.outcomes(timeout=0.5):
                _settle(schedule, hand, outcome, out, display)
            display.update([(hand.job, hand.pid) for hand in pool.hands if hand.job])
    if received:
        raise Interrupted(received[0], "before the last run was done; the same command goes on from here")
    return {name: reason for name, reason in schedule.failures.items() if name in cells}


def _give_out(schedule: Schedule, pool: "_Pool", display: Display) -> None:
    for hand in pool.hands:
        if hand.job is None and (job := schedule.next()) is not None:
            hand.start(job)
            display.begun(job)


def _settle(schedule: Schedule, hand: "_Hand", outcome: Outcome | None, out: Path, display: Display) -> None:
    """Take note of how a worker's job went; None is the worker's death."""
    job, hand.job = hand.job, None
    if outcome is None:
        hand.renew()
    if job is None:
        return
    if outcome is None:
        step = RunFolder(out / job.name).status.get("step", 0) if job.kind == "cell" else 0
        if schedule.died(job, step):
            display.say(f"{job.name}: its process was killed at step {step}; it goes on in another one")
            return
        reason = f"its process was killed {jobs.DEATHS} times at step {step}; is memory short?"
        outcome = Outcome("failed", reason)
    match outcome.how:
        case "done":
            schedule.done(job)
            display.ended(job)
        case "failed":
            for other, reason in schedule.failed(job, outcome.reason):
                if other.kind == "cell":
                    RunFolder(out / other.name).note_failure(other.config, reason)
                    display.failed(other, reason)
        case "held":
            schedule.again(job, LOOK_AGAIN)
        case "stopped":
            schedule.again(job)


class _Hand:
    """A worker process, and the job it is at."""

    def __init__(self, context: Any, out: Path) -> None:
        self._context, self._out = context, out
        self.job: Job | None = None
        self.renew()

    def renew(self) -> None:
        """Start a process."""
        self.connection, theirs = self._context.Pipe()
        self.process = self._context.Process(target=worker.work, args=(theirs, self._out), daemon=True)
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return int(self.process.pid)

    def start(self, job: Job) -> None:
        """Give the worker a job. Its death shows in `outcomes`."""
        self.job = job
        with suppress(OSError):
            self.connection.send(job)

    def outcome(self) -> Outcome | None:
        """What the worker answered, or None if it died."""
        try:
            answer: Outcome = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return None
        return answer


class _Pool:
    """Worker processes."""

    def __init__(self, count: int, out: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(worker.PRELOAD)
        self.hands = [_Hand(context, out) for _ in range(count)]

    def outcomes(self, timeout: float) -> Iterator[tuple[_Hand, Outcome | None]]:
        """What came from workers within so many seconds."""
        by_connection = {hand.connection: hand for hand in self.hands}
        for ready in connection.wait(list(by_connection), timeout):
            yield (hand := by_connection[ready]), hand.outcome()

    def stop(self) -> None:
        """Let every worker save its state and end."""
        for hand in self.hands:
            if hand.job:
                hand.process.terminate()
            hand.connection.close()
        for hand in self.hands:
            hand.process.join()


@contextmanager
def _pool(count: int, out: Path) -> Iterator[_Pool]:
    pool = _Pool(count, out)
    try:
        yield pool
    finally:
        pool.stop()
