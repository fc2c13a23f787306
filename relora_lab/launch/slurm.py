"""A grid in a SLURM queue: a job of an array (by submitit) for each of ours. How they go is read from the folder that
all nodes share, and who is alive from `squeue`, so no accounting database is needed."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from relora_lab.errors import BadInput, one_line, require
from relora_lab.launch import engine, remote
from relora_lab.launch.driver import drive
from relora_lab.launch.engine import Task
from relora_lab.launch.jobs import Job
from relora_lab.launch.worker import Outcome
from relora_lab.optional import library
from relora_lab.settings import RunConfig
from relora_lab.workspace import jobs_folder

ARRAY = 1000  # jobs at most; SLURM's MaxArraySize is 1001 unless it is set
LOOK = 3.0  # seconds between looks at the queue
GRACE = 60.0  # until the word of a job that has left the queue must be seen: a network file system takes its time
AGAIN = 30.0  # until a controller that is busy, or has enough of one user's jobs, is asked again
PASSES = ("timed out", "temporarily", "unable to contact", "submitjob", "submit job")  # refusals that time mends
USUAL = ("None", "Resources", "Priority", "BeginTime", "Dependency", "JobArrayTaskLimit")  # why jobs wait


def launch(
    cells: Mapping[str, RunConfig],
    out: Path,
    *,
    workers: int = 100,
    options: Mapping[str, str | bool] | None = None,
    title: str = "grid",
) -> dict[str, str]:
    """Train every cell into out/name, at most so many jobs in the queue, and come back when all is done; see `drive`.

    `options` are sbatch's, like {"partition": "long", "time": "10:00:00", "exclusive": True}. What is in the queue
    goes on without this process, and is taken up again by the same call. Raises BadInput without submitit or srun,
    and for what sbatch refuses; what it has taken stays in the queue.
    """
    return drive(cells, Queue(out, workers, options or {}), title)


class Queue:
    """An engine of so many jobs in the queue, those that wait there included."""

    def __init__(self, out: Path, workers: int, options: Mapping[str, str | bool]) -> None:
        submitit = library("submitit", "slurm", "--on slurm")
        place = str(out.absolute())
        require("%" not in place, f"--out {out}: SLURM takes % in a path for a sign of its own")
        # A script for sbatch names it in a comment, which ends where the line ends: the rest would be a command.
        require(place.isprintable(), f"--out {out}: SLURM needs a path of printable signs, without line breaks")
        self.out, self._workers, self.trouble = out, workers, ""
        self._logs = jobs_folder(out.absolute()) / "slurm"
        self._tasks: dict[str, Task] = {}  # by SLURM's number of the job
        self._waiting: list[Job] = []  # for SLURM to take them
        self._refused = ""  # why it did not, the last time
        self._refusal: type[Exception] = submitit.core.utils.FailedJobError
        self._gone: dict[str, float] = {}  # when a job was first seen to have left the queue without a word
        self._next_look = self._next_submission = 0.0
        try:
            self._executor = submitit.SlurmExecutor(self._logs)
        except RuntimeError:
            raise BadInput("--on slurm: there is no srun here; is this a machine that submits to SLURM?") from None
        # Without a time submitit would ask for five minutes.
        name = out.absolute().name
        self._executor.update_parameters(time=None, job_name=name, additional_parameters=dict(options))

    @property
    def tasks(self) -> list[Task]:
        return list(self._tasks.values())

    @property
    def room(self) -> int:
        return self._workers - len(self._tasks) - len(self._waiting)

    def start(self) -> None:
        require(self._look() is not None, f"--on slurm: {self.trouble}")
        self._words = remote.Words(self.out)

    def begin(self, jobs: Sequence[Job]) -> None:
        self._waiting += jobs

    def outcomes(self) -> Iterator[tuple[Task, Outcome]]:
        now = time.monotonic()
        if self._waiting and now >= self._next_submission:
            self._submit_waiting()
        time.sleep(0.5)
        if now < self._next_look:
            return
        alive = self._look()  # before what they say: who has left by now has said all
        for number, task in list(self._tasks.items()):
            outcome = self._words.hear(task)
            if outcome is None and alive is not None and number not in alive:
                outcome = self._after_grace(number)
            if outcome is not None:
                self._forget(number, task.job)
                if outcome.how == "stopped":  # SLURM may start it again by itself, and so will the driver
                    _scancel(number)
                yield task, outcome
        self._next_look = time.monotonic() + LOOK

    def stop(self, received: list[int]) -> None:
        if received and signal.SIGHUP not in received:  # who hangs up, or fails, leaves the jobs in the queue
            before = len(received)
            _scancel(*self._tasks)
            while self._tasks.keys() & (self._look() or {}).keys() and len(received) == before:
                time.sleep(0.5)
            if len(received) > before:
                _scancel("--full", "--signal=KILL", *self._tasks)
        self._words.close(over=not received and not self._tasks)

    def _submit_waiting(self) -> None:
        """Submit what waits, as arrays of those that need the same, but what is in the queue already."""
        alive = self._look()
        if alive is None:
            return
        for job in self._waiting.copy():
            number = self._words.number(job)  # from a driver that is gone
            if number in alive or self._words.shared_and_done(job):
                self._tasks[number or job.key] = engine.begun(job, self.out)
                self._waiting.remove(job)
        for needed, alike in groupby(sorted(self._waiting, key=remote.resources), key=remote.resources):
            try:
                self._submit(list(alike)[:ARRAY], *needed)
            except self._refusal as error:
                for pickled in self._logs.glob("[!.]*.pkl"):
                    if "_" not in pickled.name:  # no job has it
                        pickled.unlink()
                self._refused, self._next_submission = one_line(error), time.monotonic() + AGAIN
                passes = any(reason in self._refused.lower() for reason in PASSES)
                require(passes, f"--on slurm: {self._refused}")

    def _submit(self, jobs: list[Job], cpus: int, gpus: int) -> None:
        for job in jobs:
            self._words.forget(job)
        # srun takes only what it is told itself, since SLURM 22.05
        needs = {"cpus_per_task": cpus, "srun_args": [f"--cpus-per-task={cpus}"], "gpus_per_node": gpus or None}
        self._executor.update_parameters(**needs)
        self._refused = ""
        with self._executor.batch():
            submitted = [self._executor.submit(_do, job, self._words.place) for job in jobs]
        for job, queued in zip(jobs, submitted, strict=True):
            self._words.note_number(job, queued.job_id)
            self._tasks[queued.job_id] = engine.begun(job, self.out)
            self._waiting.remove(job)
        for script in self._logs.glob("*submission*"):
            script.unlink(missing_ok=True)

    def _look(self) -> dict[str, str] | None:
        """This user's jobs in the queue, and why each waits; None if there is no answer. What is wrong is trouble."""
        command = ["squeue", "--noheader", "--array", "--user", str(os.getuid()), "--format", "%i|%r"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            self.trouble = " ".join(done.stderr.split()) or "squeue does not answer"
            return None
        found = dict(line.split("|", 1) for line in done.stdout.splitlines())
        waits = (
            f"job {number} waits: {found[number]}" for number in self._tasks if found.get(number, "None") not in USUAL
        )
        self.trouble = next(waits, self._refused)
        return found

    def _after_grace(self, number: str) -> Outcome | None:
        """The outcome of a job that has left the queue without a word, once that has been so for a while."""
        gone = self._gone.setdefault(number, time.monotonic())
        if time.monotonic() - gone < GRACE:
            return None
        logs = sorted(self._logs.glob(f"{number}_*log.err"))
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines() if line.strip()]
        said = f"its log ends: {lines[-1]}" if lines else f"it left no log; do all nodes see {self._logs}?"
        return self._words.silent_death(f"SLURM job {number} ended without a result: {said}")

    def _forget(self, number: str, job: Job) -> None:
        del self._tasks[number]
        self._gone.pop(number, None)
        self._words.note_number(job, "")
        for path in self._logs.glob(f"{number}_*"):
            path.unlink(missing_ok=True)


def _scancel(*arguments: str) -> None:
    subprocess.run(["scancel", *arguments], check=False, capture_output=True)


def _do(job: Job, place: remote.Place) -> None:
    """On a node. At scancel and before a time limit a run saves its state; what is no run just ends."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    remote.do(job, place)
