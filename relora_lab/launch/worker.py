"""How a job is done; and what a worker process of this machine does: jobs, one after the other, until its driver says
that there are no more or is gone."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, NamedTuple

from tqdm import tqdm

from relora_lab.errors import BadInput, FolderHeld, Interrupted, why
from relora_lab.launch.jobs import Job
from relora_lab.outcome import note_failure
from relora_lab.runs import RunFolder

# What the server that workers are forked from imports, so that none of them waits for it.
PRELOAD = [
    "relora_lab.cli",
    "relora_lab.launch.worker",
    "relora_lab.train",
    "transformers.models.llama.modeling_llama",  # which transformers imports late
]


class Ready(NamedTuple):
    """The first thing a worker says."""


class Outcome(NamedTuple):
    """How a job went: done, failed for a reason, held by another process, or stopped by a signal to this one.

    Of a worker that "died" others say so.
    """

    how: Literal["done", "failed", "held", "stopped", "died"]
    reason: str = ""


Answer = Ready | Path | Outcome  # a path is the folder of the stage that is trained


def work(connection: Connection, out: Path, number: int) -> None:
    """Do the jobs that come over the connection, for the runs below `out`, and answer each with an Outcome."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the driver tells who is to stop
    tqdm.set_lock(threading.RLock())  # its own is a semaphore that a killed process leaves behind
    threading.Thread(target=_stop_with_the_driver, daemon=True).start()
    take_gpu(number)
    with suppress(EOFError, BrokenPipeError):  # the driver has no more jobs, or is gone
        connection.send(Ready())
        sound = True
        while sound:
            job: Job = connection.recv()
            try:
                outcome = do(job, out, connection.send)
            except Exception as error:
                outcome, sound = failed(job, out, error), False  # a GPU's error can outlast the run that it hit
            connection.send(outcome)


def do(job: Job, out: Path, tell: Callable[[Path], None]) -> Outcome:
    """Do a job; what a person gave wrong makes it fail, and any other exception is raised.

    `tell` is called with the folder of a stage, before it is trained.
    """
    from relora_lab import train

    try:
        match job.kind:
            case "tokens":
                train.tokens(job.config, out)
            case "stage":
                train.stage(job.config, out, job.cuts, tell)
            case "cell":
                train.run(job.config, out / job.name, resume=True, cuts=job.cuts)
    except FolderHeld as held:
        return Outcome("held", str(held))
    except Interrupted as stop:
        return Outcome("stopped", str(stop))
    except BadInput as error:
        return failed(job, out, error)
    return Outcome("done")


def failed(job: Job, out: Path, error: Exception) -> Outcome:
    """The outcome of a job that an exception ended, which is noted in a cell's folder."""
    if job.kind == "cell":
        note_failure(RunFolder(out / job.name), job.config, why(error))
    return Outcome("failed", why(error))


def take_gpu(number: int) -> None:
    """Let "cuda" mean another one of the GPUs here for each worker, by its number."""
    import torch

    if (count := torch.cuda.device_count()) > 1:
        torch.cuda.set_device(number % count)


def _stop_with_the_driver() -> None:
    """Runs in training save their state at SIGTERM; elsewhere there is nothing to save."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os.kill(os.getpid(), signal.SIGTERM)
