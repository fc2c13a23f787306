"""`--track`: the numbers of runs in TensorBoard or in Weights & Biases, while they are trained or afterwards.

A tracker reads the logs of run folders from outside, so that training neither knows of it nor depends on it.
"""

import hashlib
import json
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from relora_lab import config
from relora_lab.errors import BadInput, one_line
from relora_lab.optional import library
from relora_lab.runs import MAY_CHANGE, RunFolder

Kind = Literal["tensorboard", "wandb"]
FOLLOWED = ("metrics", "eval")
PATIENCE = 60  # seconds at the end of training for what is still to be sent


def require_library(kind: Kind) -> None:
    """Raise BadInput, with the fix, unless the tracker's library is installed and, if it is wandb, logged in.

    wandb asks for a key, if there is a terminal, where it has none.
    """
    library({"tensorboard": "tensorboard.summary", "wandb": "wandb.sdk"}[kind], kind, f"--track {kind}")
    if kind == "wandb":
        import wandb

        try:
            wandb.login()
        except Exception as error:
            raise BadInput(f"--track wandb: {one_line(error)}") from None


@contextmanager
def following(kind: Kind, runs: Iterable[RunFolder], *, every: float = 5.0) -> Iterator[None]:
    """Send what is new in the logs every few seconds inside the block, in a thread, and at its end the rest."""
    tracker, over = Tracker(kind, runs), threading.Event()

    def follow() -> None:
        while not over.wait(every):
            tracker.update()
        tracker.close()

    thread = threading.Thread(target=follow, name=f"track {kind}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(PATIENCE)
        if thread.is_alive():
            print(f"--track {kind}: the last numbers are not sent after {PATIENCE} s; given up", file=sys.stderr)


class Tracker:
    """Sends each number of the runs' logs once. The first error ends it, with a line on stderr; none is raised.

    A run is taken up when it has begun and closed when it has ended. TensorBoard's files are in .tensorboard/
    beside the run folder, those of wandb in .wandb/.
    """

    def __init__(self, kind: Kind, runs: Iterable[RunFolder]) -> None:
        self.kind = kind
        self._open = [_Run(kind, folder) for folder in runs]

    def update(self) -> None:
        """Send what is new."""
        self._do(last=False)

    def close(self) -> None:
        """Send what is new, and close."""
        self._do(last=True)
        self._open = []

    def _do(self, last: bool) -> None:
        try:
            self._open = [run for run in self._open if not run.update(last)]
        except Exception as error:
            self._open = []
            print(f"--track {self.kind}: no longer, since {one_line(error)}; training goes on", file=sys.stderr)


class _Run:
    """A run folder, and where its numbers go."""

    def __init__(self, kind: Kind, folder: RunFolder) -> None:
        self._kind, self._folder = kind, folder
        self._to: _TensorBoard | _Wandb | None = None
        self._lines = {log: _Lines(folder.logs.path(log)) for log in FOLLOWED}
        self._sent: dict[str, int] = {}  # the last step of each log

    def update(self, last: bool) -> bool:
        """Send what is new; close if it is the last time, or the run has ended. Is it closed?"""
        if self._to is None:
            if not self._folder.begun:
                return False
            self._to = (_TensorBoard if self._kind == "tensorboard" else _Wandb)(self._folder)
            self._sent = {log: self._to.sent(log) for log in FOLLOWED}
        last = last or self._folder.ended  # asked before the logs are read: they are complete if it is so
        for log, lines in self._lines.items():
            for line in lines.new():
                step = line.pop("step")
                if step > self._sent[log]:
                    self._to.send(log, step, {f"{log}/{name}": x for name, x in line.items() if x is not None})
                    self._sent[log] = step
        self._to.close() if last else self._to.flush()
        return last


class _Lines:
    """The lines of a log, as they come. One without its end waits; a log that was cut back begins again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at, self._line = 0, b""  # the last line, and where it begins

    def new(self) -> Iterator[dict[str, Any]]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            if file.read(len(self._line)) != self._line:
                self._at, self._line = file.seek(0), b""
            for line in file:
                if line.endswith(b"\n"):
                    self._at, self._line = self._at + len(self._line), line
                    yield json.loads(line)


class _TensorBoard:
    """One event file, in place of what an earlier tracker wrote: a resumed run's curves have no point twice."""

    _file: BinaryIO

    def __init__(self, folder: RunFolder) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        place = folder.path.absolute().parent / ".tensorboard" / folder.path.name
        place.mkdir(parents=True, exist_ok=True)
        for earlier in place.glob("events.out.tfevents.*"):
            earlier.unlink()
        self._file = (place / f"events.out.tfevents.{time.time_ns()}").open("wb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        self._write(session_log=SessionLog(status=SessionLog.START))  # a page that is open forgets the earlier file
        self._write(summary=hparams_pb(_flat(_settings(folder)), trial_id=folder.path.name))

    def sent(self, _log: str) -> int:
        """The last step that it has of a log, from before; −1 if there is none."""
        return -1

    def send(self, _log: str, step: int, numbers: dict[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=number) for tag, number in numbers.items()]
        self._write(step=step, summary=Summary(value=values))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, **parts: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **parts).SerializeToString())


class _Wandb:
    """A run at wandb, which knows the last step it has. Each log has its own steps: they come at different times."""

    def __init__(self, folder: RunFolder) -> None:
        import wandb

        path, settings = folder.path.absolute(), _settings(folder)
        trained = {name: x for name, x in _flat(settings).items() if name not in MAY_CHANGE}
        identity = hashlib.sha256(json.dumps([str(path), trained], sort_keys=True).encode()).hexdigest()[:16]
        files = path.parent / ".wandb"  # where it is there, wandb takes it
        files.mkdir(exist_ok=True)
        for unsent in files.glob(f"offline-run-*-{identity}"):
            shutil.rmtree(unsent)  # written again from the start
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "relora_lab"),
            group=path.parent.name,
            name=path.name,
            id=identity,
            resume="allow",
            reinit="create_new",  # many at once
            dir=path.parent,
            config=settings,
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
        )
        for log in FOLLOWED:
            self._run.define_metric(f"{log}/*", step_metric=f"{log}/step")

    def sent(self, log: str) -> int:
        return int(self._run.summary.get(f"{log}/step", -1))

    def send(self, log: str, step: int, numbers: dict[str, float]) -> None:
        self._run.log({f"{log}/step": step, **numbers})

    def flush(self) -> None:
        pass  # it sends by itself

    def close(self) -> None:
        self._run.finish()


def _settings(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """The run's settings by table, with text for what a tracker cannot show as it is: lists, infinity."""
    tables = {table: part for table, part in config.as_table(folder.config).items() if isinstance(part, dict)}
    return {table: {name: _shown(value) for name, value in part.items()} for table, part in tables.items()}


def _flat(settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{table}.{name}": value for table, part in settings.items() for name, value in part.items()}


def _shown(value: Any) -> Any:
    plain = isinstance(value, int | str) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else str(value)
