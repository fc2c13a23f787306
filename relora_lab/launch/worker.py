"""What a worker process does: jobs, one after the other, until its driver says that there are no more or is gone."""

import multiprocessing
import os
import signal
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, NamedTuple

from relora_lab.errors import FolderHeld, Interrupted, why
from relora_lab.launch.jobs import Job
from relora_lab.runs import RunFolder

LLAMA = "transformers.models.llama.modeling_llama"  # which transformers imports late
# What the server that workers are forked from imports, so that none of them waits for it.
PRELOAD = [
    "relora_lab.cli",
    "relora_lab.launch.worker",
    "relora_lab.train",
    "transformers.models.llama.modeling_llama",
]


class Outcome(NamedTuple):
    """How a job went: done, failed for a reason, held by another process, or stopped by a signal to this one."""

    how: Literal["done", "failed", "held", "stopped"]
    reason: str = ""


def work(connection: Connection, out: Path) -> None:
    """Do the jobs that come over the connection, for the runs below `out`, and answer each with an Outcome."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the driver tells who is to stop
    threading.Thread(target=_stop_with_the_driver, daemon=True).start()
    with suppress(EOFError, BrokenPipeError):  # the driver has no more jobs, or is gone
        while True:
            connection.send(do(connection.recv(), out))


def do(job: Job, out: Path) -> Outcome:
    """Do a job. A failure is noted in the cell's run folder too."""
    from relora_lab import train

    try:
        match job.kind:
            case "tokens":
                train.tokens(job.config, out)
            case "stage":
                train.stage(job.config, out, job.cuts)
            case "cell":
                train.run(job.config, out / job.name, resume=True, cuts=job.cuts)
    except FolderHeld as held:
        return Outcome("held", str(held))
    except Interrupted as stop:
        return Outcome("stopped", str(stop))
    except Exception as error:
        if job.kind == "cell":
            RunFolder(out / job.name).note_failure(job.config, why(error))
        return Outcome("failed", why(error))
    return Outcome("done")


def _stop_with_the_driver() -> None:
    """Runs in training save their state at SIGTERM; elsewhere there is nothing to save."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os.kill(os.getpid(), signal.SIGTERM)
