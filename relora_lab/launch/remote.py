"""Jobs on other machines: what they have to say goes through the folder that all of them share."""

import hashlib
import os
import secrets
import shutil
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from relora_lab import files
from relora_lab.errors import BadInput, require
from relora_lab.launch import worker
from relora_lab.launch.engine import Task
from relora_lab.launch.jobs import Job
from relora_lab.launch.worker import Outcome
from relora_lab.runs import RunFolder
from relora_lab.workspace import jobs_folder

HELD_SECONDS = 2.0  # until a job that another process does is tried again


class Place(NamedTuple):
    """Where a job is done: for the runs below `out`, where a file says `name`, with paths from `here`."""

    out: Path
    name: str
    here: Path


def do(job: Job, place: Place) -> Outcome:
    """Do a job for a driver on another machine, and leave word of how it went.

    Raises BadInput where the folder is not the driver's.
    """
    words = jobs_folder(place.out)
    with suppress(OSError):  # a relative path in the settings means the driver's
        os.chdir(place.here)
    host, found = socket.gethostname(), words / "name"
    shared = found.exists() and found.read_text() == place.name
    require(shared, f"--out {place.out}: is another folder on {host}; all machines of a grid need to share it")
    word: dict[str, Any] = {}

    def say(**facts: Any) -> None:
        word.update(facts)
        files.write_json(_word(words, job), word)

    say(host=host, sees_driver=files.is_locked(words / "driver"))
    try:
        # A process that a driver has lost sight of may be at it; a turn in a queue is worth the wait.
        while (outcome := worker.do(job, place.out, lambda folder: say(folder=str(folder)))).how == "held":
            time.sleep(HELD_SECONDS)
    except Exception as error:
        outcome = worker.failed(job, place.out, error)
    say(**outcome._asdict())
    return outcome


class Words:
    """What jobs elsewhere say: a file for each in a hidden folder below `out`.

    Raises FolderHeld if another driver gives out jobs for `out`.
    """

    def __init__(self, out: Path) -> None:
        self.folder = jobs_folder(out.absolute())
        self.folder.mkdir(parents=True, exist_ok=True)
        self._held = ExitStack()
        self._held.enter_context(files.locked(self.folder / "driver"))
        if not (self.folder / "name").exists():
            files.write_text(self.folder / "name", secrets.token_hex(8))
        self.place = Place(out.absolute(), (self.folder / "name").read_text(), Path.cwd())
        self._ours = set[str]()  # keys of jobs that were given out here
        self._heard = False

    def forget(self, job: Job) -> None:
        """Remove what was said of a job; it is given out anew."""
        self._ours.add(job.key)
        _word(self.folder, job).unlink(missing_ok=True)

    def note_number(self, job: Job, number: str) -> None:
        """Store the number that a queue gave to a job, for a driver that comes after this one; none if it is over."""
        path = _word(self.folder, job).with_suffix(".number")
        if number:
            files.write_text(path, number)
        else:
            path.unlink(missing_ok=True)

    def number(self, job: Job) -> str:
        """The number that a queue gave to a job last; empty if there is none."""
        path = _word(self.folder, job).with_suffix(".number")
        return path.read_text() if path.exists() else ""

    def hear(self, task: Task) -> Outcome | None:
        """Note what the task's worker has said; its outcome, if it is over.

        Raises BadInput where it could not see that the driver holds a lock.
        """
        try:
            word = files.read_json(_word(self.folder, task.job))
        except BadInput:  # being replaced, on a network
            return None
        self._heard = self._heard or bool(word)
        # One that began for another driver may have begun when none was there.
        seen = word.get("sees_driver", True) or task.job.key not in self._ours
        where = f"--out {self.place.out}: a lock held here is not seen on {word.get('host')}"
        require(seen, f"{where}; the file system needs locks that all machines share (mount it with flock)")
        if "folder" in word:
            task.folder = RunFolder(word["folder"])
        return Outcome(word["how"], word["reason"]) if "how" in word else None

    def shared_and_done(self, job: Job) -> bool:
        """Has a job that only others need been done for this folder? Then it need not wait in a queue again."""
        return job.kind != "cell" and files.read_json(_word(self.folder, job)).get("how") == "done"

    def silent_death(self, reason: str) -> Outcome:
        """The outcome of a task whose process ended without one. Raises BadInput if no other one ever began."""
        if not self._heard:
            raise BadInput(reason)
        return Outcome("died", reason)

    def close(self, *, over: bool) -> None:
        """Let go of the folder; with `over`, remove it, unless a queue still has jobs of another grid's."""
        if over and not any(self.folder.glob("*.number")):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._held.close()


def resources(job: Job) -> tuple[int, int]:
    """CPUs and GPUs that a job needs."""
    training = job.config.training
    return training.threads, int(training.device != "cpu" and job.kind != "tokens")


def _word(words: Path, job: Job) -> Path:
    return words / f"{hashlib.sha256(job.key.encode()).hexdigest()[:16]}.json"
