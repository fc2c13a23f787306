"""The commands of `relora-lab`, by what one does. Each imports what it needs inside, so that --help comes at once."""

import sys
from typing import Any

import tyro

from relora_lab.errors import printable

DONE, FAILED, BAD_INPUT, PARTIAL, HELD, DIVERGED = 0, 1, 2, 3, 4, 5  # exit codes


def default(told: str) -> Any:
    """How --help tells what an option is where it is not given, and the default is None."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {told})")


def say(message: str) -> None:
    """A line for people, on stderr."""
    print("relora-lab: " + printable(" ".join(message.split())), file=sys.stderr)
