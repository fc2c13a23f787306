"""The command `relora-lab`: its arguments, exit codes and error messages. What it does is in commands/."""

import errno
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial, wraps
from typing import Any

import tyro

from relora_lab import __version__, torchrun
from relora_lab.commands import BAD_INPUT, DONE, FAILED, HELD, folders, looking, say, training
from relora_lab.errors import BadInput, FolderHeld, Interrupted, NoSpace, one_line

Commands = dict[str, Callable[..., int]]
COMMANDS: Commands = {
    "train": training.train,
    "grid": training.grid,
    "demo": training.demo,
    "status": training.status,
    "plan": looking.plan,
    "report": looking.report,
    "spectrum": looking.spectrum,
    "runs": folders.runs,
    "export": folders.export,
}
HOW = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)  # --resume alone, no --no-resume; no {None}
RUNS_COMMANDS: Commands = {"diff": folders.runs_diff, "check": folders.runs_check, "clean": folders.runs_clean}


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code; an error is one line on stderr (all of it with --debug)."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    sys.exit(_run([argument for argument in given if argument != "--debug"], debug))


def _run(arguments: list[str], debug: bool) -> int:
    about = (
        "Train by low-rank updates, then look at the rank of what was learned. --debug shows where an error is from."
    )
    commands, program = COMMANDS, "relora-lab"
    if arguments == ["--version"]:
        print(f"relora-lab {__version__}")
        return DONE
    if arguments[:1] == ["runs"] and arguments[1:2] and arguments[1] in RUNS_COMMANDS:
        commands, program, arguments = RUNS_COMMANDS, "relora-lab runs", arguments[1:]
    try:
        return _parsed(commands, arguments, program, about)()
    except BrokenPipeError:  # who reads our output, head say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        code, message = _explain(error)
        if code == FAILED or torchrun.local_rank() == 0:  # what all processes of a run come to is said once
            say(message)
        return code


def _parsed(commands: Commands, arguments: list[str], program: str, about: str) -> Callable[[], int]:
    """The command with its arguments. Raises BadInput where they are none of its own."""
    later = {name: _later(command) for name, command in commands.items()}
    with redirect_stderr(io.StringIO()) as said:
        try:
            return tyro.extras.subcommand_cli_from_dict(
                later, args=arguments, prog=program, description=about, config=HOW
            )
        except SystemExit as stop:  # after --help, or with a box of lines on stderr
            if not stop.code:
                raise
    inside = [line.strip("│ ") for line in said.getvalue().splitlines() if not re.match(r"[╭╰]|│ ─|[-+| ]+$", line)]
    raise BadInput(" ".join(" ".join(inside).split()))


def _later(command: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """The command as one that only takes its arguments."""

    @wraps(command)
    def take(*arguments: Any, **options: Any) -> Callable[[], int]:
        return partial(command, *arguments, **options)

    return take


def _explain(error: BaseException) -> tuple[int, str]:
    """Exit code and message."""
    match error:
        case BadInput():
            return BAD_INPUT, str(error)
        case NoSpace():
            return FAILED, str(error)
        case OSError() if error.errno == errno.ENAMETOOLONG:
            return BAD_INPUT, str(BadInput(f"{error.filename}: this name is too long for a file"))
        case FolderHeld():
            return HELD, str(error)
        case Interrupted():
            return 128 + error.signum, str(error)
        case KeyboardInterrupt():
            return 128 + signal.SIGINT, "interrupted"
        case _:
            return FAILED, f"{type(error).__name__}: {one_line(error)} (--debug shows where)"
