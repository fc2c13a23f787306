"""A small run that faults strike, in processes forked from one that has imported all it needs."""

import contextlib
import io
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

from conftest import changed, tiny_tables

from relora_lab import check, cli, train
from relora_lab.errors import BadInput
from relora_lab.faults import VARIABLE
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["relora_lab.train", "relora_lab.cli", "transformers.models.llama.modeling_llama"])
STEPS = 60


def tiny_run(**parts: dict[str, Any]) -> RunConfig:
    """A ReLoRA run: warm start to 20, restarts at 34 and 48, checkpoints at 8, 16, 20 (a stage's end), 24, ...."""
    method = {"optimizer_reset": "magnitude", "reset_ratio": 0.9} | parts.pop("method", {})
    return changed(tiny_tables(), method=method, **parts)


def content(folder: str | Path) -> dict[str, Any]:
    """Everything a run leaves but times: bytes of the weights and cycles, lines of the logs, its last state."""
    run = RunFolder(folder)
    logs: dict[str, Any] = {log: run.logs.read(log) for log in ("metrics", "eval", "norms")}
    for line in logs["metrics"]:
        del line["tokens_per_second"]
    kept = ("warm_start/*", "final/*", "cycles/*", "snapshots/*/*", "checkpoints/*/*.safetensors")
    files = [path for pattern in kept for path in run.path.glob(pattern)]
    return logs | {path.relative_to(run.path).as_posix(): path.read_bytes() for path in files}


def faults_below(runs: Path) -> list[str]:
    """What is not as it was written below a folder of runs, of which the first may not have begun."""
    try:
        return list(filter(None, check.faults(runs)))
    except BadInput as error:
        return [] if "holds no run folder" in str(error) else [str(error)]


def torn(folder: Path) -> list[Path]:
    """What was left half written below a folder; locks may stay, which nobody holds."""
    kept = (".stages", ".tokens", ".written")
    return [path for path in folder.rglob(".*") if path.name not in kept and not path.name.endswith(".lock")]


def in_child(function: Any, *arguments: Any, fault: str | None = None, seconds: float = 120) -> int | None:
    """Call a function in a process of its own, with a fault in its environment; how that ended."""
    child = CONTEXT.Process(target=_call, args=(fault, function, arguments))
    child.start()
    child.join(seconds)
    if child.is_alive():
        child.kill()
        raise TimeoutError(f"{function} took more than {seconds} seconds")
    return child.exitcode


def begun(function: Any, *arguments: Any, fault: str | None = None) -> Any:
    """The process of `in_child`, still running."""
    child = CONTEXT.Process(target=_call, args=(fault, function, arguments))
    child.start()
    return child


def _call(fault: str | None, function: Any, arguments: tuple[Any, ...]) -> None:
    if fault:
        os.environ[VARIABLE] = fault
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it would be ignored
    function(*arguments)


def train_run(config: RunConfig, out: Path) -> None:
    """Train a run, or go on with it."""
    train.run(config, out, resume=True)


class Command:
    """The command relora-lab in a process of its own."""

    def __init__(self, *arguments: object, fault: str | None = None) -> None:
        self._said, theirs = CONTEXT.Pipe(duplex=False)
        self.process = begun(_say, theirs, tuple(map(str, arguments)), fault=fault)
        theirs.close()

    def ended(self) -> tuple[int | None, list[str]]:
        """Exit code, and lines on stderr but for notes and progress."""
        text = ""
        with contextlib.suppress(EOFError):  # it was killed
            text = str(self._said.recv())
        self.process.join(60)
        assert "Traceback" not in text
        said = [line for line in text.splitlines() if line.startswith("relora-lab: ")]
        return self.process.exitcode, [line for line in said if not line.startswith("relora-lab: note:")]


def _say(connection: Any, arguments: tuple[str, ...]) -> None:
    """Send what the command said, on a way that no full disk is in."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stderr(text), contextlib.redirect_stdout(io.StringIO()):
            cli.main(list(arguments))
    finally:
        connection.send(text.getvalue())


def wait_until(condition: Any, seconds: float = 60) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
