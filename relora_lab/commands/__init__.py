"""The commands of `relora-lab`, by what one does. Each imports what it needs inside, so that --help comes at once."""

import sys

from relora_lab.errors import printable

DONE, FAILED, BAD_INPUT, PARTIAL, HELD, DIVERGED = 0, 1, 2, 3, 4, 5  # exit codes


def say(message: str) -> None:
    """A line for people, on stderr."""
    print("relora-lab: " + printable(" ".join(message.split())), file=sys.stderr)
