"""A grid on this machine: gives its jobs to worker processes until none is left."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from relora_lab import process, stages, status
from relora_lab.errors import Interrupted
from relora_lab.launch import jobs
from relora_lab.launch.display import Display
from relora_lab.launch.jobs import Job, Schedule
from relora_lab.launch.pool import Hand, Pool
from relora_lab.launch.worker import Outcome
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig

LOOK_AGAIN = 1.0  # seconds until a job that another process does is tried again


def launch(cells: Mapping[str, RunConfig], out: Path, *, workers: int, title: str = "grid") -> dict[str, str]:
    """Train every cell into out/name, what they share once, going on where each was left.

    Returns the failures' reasons by cell. A cell that fails does not stop the others, a diverged one is no failure,
    and one that another process trains is waited for. Everything that is known lies on disk: driver and workers can
    be killed at any time, and the same call goes on. Raises BadInput, before anything runs, for a folder that cannot
    hold the grid and a cell that has begun with other settings; Interrupted after a signal, when every worker has
    saved its state (a second signal does not wait for that).
    """
    plan = stages.plan(cells)
    status.declare(cells, plan, out)
    found = jobs.of_grid(cells, plan, out)
    schedule, display = Schedule(found), Display(title, cells, found)
    with process.signals() as received, display, _pool(min(workers, len(found)), out, received) as pool:
        while schedule.left and not received:
            _give_out(schedule, pool)
            for hand, outcome in pool.outcomes(timeout=0.5):
                _settle(schedule, hand, outcome, out, display)
            display.update(pool.hands)
        if received:
            display.say("stopping: workers save their state (again to stop without)")
    if received:
        raise Interrupted(received[0], "before the last run was done; the same command goes on from here")
    return {name: reason for name, reason in schedule.failures.items() if name in cells}


@contextmanager
def _pool(count: int, out: Path, received: list[int]) -> Iterator[Pool]:
    pool = Pool(count, out)
    try:
        yield pool
    finally:
        pool.stop(received)


def _give_out(schedule: Schedule, pool: Pool) -> None:
    for hand in pool.hands:
        if hand.job is None and (job := schedule.next()) is not None:
            hand.begin(job)


def _settle(schedule: Schedule, hand: Hand, outcome: Outcome, out: Path, display: Display) -> None:
    """Take note of how a worker's job went."""
    job, folder = hand.job, hand.folder
    hand.job = hand.folder = None
    if job is None:
        return
    display.forget(job)
    if outcome.how == "died":
        outcome = _after_death(schedule, job, folder.checkpoint_step if folder else 0, display)
    match outcome.how:
        case "done":
            schedule.done(job)
            display.ended(job, RunFolder(out / job.name))
        case "failed":
            for other, reason in schedule.failed(job, outcome.reason):
                if other.kind == "cell":
                    RunFolder(out / other.name).note_failure(other.config, reason)
                    display.failed(other, reason)
        case "held":
            schedule.again(job, LOOK_AGAIN)
        case "stopped":
            schedule.again(job)


def _after_death(schedule: Schedule, job: Job, step: int, display: Display) -> Outcome:
    if schedule.may_die(job, step):
        display.say(f"{job.name}: its process was killed; it goes on from step {max(step, job.start)} in another one")
        return Outcome("stopped")
    return Outcome("failed", f"its process was killed {jobs.DEATHS} times after step {step}; is memory short?")
