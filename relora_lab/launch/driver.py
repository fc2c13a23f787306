"""Drives a grid: gives its jobs to an engine until none is left."""

from collections.abc import Mapping
from itertools import islice

from relora_lab import process, stages, status
from relora_lab.errors import Interrupted
from relora_lab.launch import jobs
from relora_lab.launch.display import Display
from relora_lab.launch.engine import Engine, Task
from relora_lab.launch.jobs import Schedule
from relora_lab.launch.worker import Outcome
from relora_lab.outcome import note_failure
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig

LOOK_AGAIN = 1.0  # seconds until a job that another process does is tried again


def drive(cells: Mapping[str, RunConfig], engine: Engine, title: str) -> dict[str, str]:
    """Train every cell into engine.out/name, what they share once, going on where each was left.

    Returns the failures' reasons by cell. A cell that fails does not stop the others, a diverged one is no failure,
    and one that another process trains is waited for. Everything that is known lies on disk: driver and workers can
    be killed at any time, and the same call goes on. Raises BadInput, before anything runs, for a folder that cannot
    hold the grid and a cell that has begun with other settings; Interrupted after a signal, when every worker has
    saved its state (a second signal does not wait for that).
    """
    plan = stages.plan(cells)
    status.declare(cells, plan, engine.out)
    found = jobs.of_grid(cells, plan, engine.out)
    schedule, display = Schedule(found), Display(title, cells, found)
    trouble = ""
    with process.signals() as received, display:
        engine.start()
        try:
            while schedule.left and not received:
                engine.begin(list(islice(iter(schedule.next, None), engine.room)))
                for task, outcome in engine.outcomes():
                    _settle(schedule, task, outcome, engine, display)
                display.update(engine.tasks)
                if engine.trouble != trouble:
                    trouble = engine.trouble
                    display.say(trouble or "going on")
            if received:
                display.say("stopping: workers save their state (again to stop without)")
        finally:
            engine.stop(received)
    if received:
        raise Interrupted(received[0], "before the last run was done; the same command goes on from here")
    return {name: reason for name, reason in schedule.failures.items() if name in cells}


def _settle(schedule: Schedule, task: Task, outcome: Outcome, engine: Engine, display: Display) -> None:
    """Take note of how a task went."""
    job = task.job
    display.forget(job)
    if outcome.how == "died":
        outcome = _after_death(schedule, task, outcome.reason, display)
    match outcome.how:
        case "done":
            schedule.done(job)
            display.ended(job, RunFolder(engine.out / job.name))
        case "failed":
            for other, reason in schedule.failed(job, outcome.reason):
                if other.kind == "cell":
                    note_failure(RunFolder(engine.out / other.name), other.config, reason)
                    display.failed(other, reason)
        case "held":
            schedule.again(job, LOOK_AGAIN)
        case "stopped":
            schedule.again(job)


def _after_death(schedule: Schedule, task: Task, reason: str, display: Display) -> Outcome:
    job, step = task.job, task.step
    why = f" ({reason})" if reason else ""
    if schedule.may_die(job, step):
        going_on = f"it goes on from step {max(step, job.start)} in another one"
        display.say(f"{job.name}: its process was killed{why}; {going_on}")
        return Outcome("stopped")
    again = f"its process was killed {jobs.DEATHS} times after step {step}"
    return Outcome("failed", f"{again}{why or '; is memory short?'}")
