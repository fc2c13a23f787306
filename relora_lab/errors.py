"""What can go wrong, by exit code. Each message is one line that names the field, file or step."""

from pathlib import Path


class BadInput(ValueError):
    """A setting, file or folder the user gave cannot be used (exit 2). One line, whatever text it quotes."""

    def __init__(self, message: str) -> None:
        shown = printable(message)
        super().__init__(shown if len(shown) <= 500 else f"{shown[:250]} … {shown[-240:]}")


class NoSpace(OSError):
    """A file could not be written for want of space (exit 1); what was there before is there still."""

    def __init__(self, path: Path, needs: int, free: int) -> None:
        super().__init__(printable(f"no space left: writing {path}, needs {needs:,} bytes, free {free:,}"))
        self.path, self.needs, self.free = path, needs, free


class FolderHeld(RuntimeError):
    """Another process holds the run folder (exit 4)."""


class Interrupted(Exception):
    """A signal stopped the work after its state was saved (exit 128 + signal)."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(signum, message)
        self.signum, self.message = signum, message

    def __str__(self) -> str:
        return f"stopped by signal {self.signum} {self.message}"


def printable(text: str) -> str:
    """Foreign text on one line, with escapes for what a terminal might obey."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def why(error: Exception) -> str:
    """Why a run failed, in a line: what a person gave wrong speaks for itself, anything else with its type."""
    if isinstance(error, BadInput | NoSpace):
        return str(error)
    return f"{type(error).__name__}: {one_line(error)}"


def one_line(error: BaseException) -> str:
    """What a library's error says, in a line that is not too long to be quoted."""
    text = printable(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"


def require(condition: bool, message: str) -> None:
    """Raise BadInput(message) unless the condition holds."""
    if not condition:
        raise BadInput(message)
