"""How a run ended early, in its status.json: as far as that can be written, for the disk may be full."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from relora_lab.errors import BadInput, FolderHeld, Interrupted, why
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig


@contextmanager
def noted(folder: RunFolder) -> Iterator[None]:
    """Write, in one line, why the block ended early if it does; and close the logs."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stop:
        _note(folder, state="stopped", reason=str(stop) or "interrupted")
        raise
    except Exception as error:
        _note(folder, state="failed", reason=why(error))
        raise
    folder.logs.close()


def note_failure(folder: RunFolder, settings: RunConfig, reason: str) -> None:
    """Write why a run failed that may not have begun, if the folder is that run's."""
    with suppress(FolderHeld, BadInput, OSError):
        folder.make()
        folder.require_same(settings)
        with folder.lock():
            if not folder.begun:
                folder.write_config(settings)
            if not folder.ended:
                facts = {"step": 0, "steps": settings.training.steps, **folder.status}
                folder.write_status(**{**facts, "state": "failed", "reason": reason})


def _note(folder: RunFolder, **facts: Any) -> None:
    with suppress(OSError):
        folder.logs.close()
    with suppress(OSError, BadInput):
        folder.write_status(**{**folder.status, **facts})
