"""The line logs of a run folder: metrics, eval and norms, a JSON object a line."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from relora_lab import files
from relora_lab.errors import BadInput, require

LOGS = ("metrics", "eval", "norms")


class Logs:
    """The logs of one folder. Lines are safe once a checkpoint knows the logs' sizes (`sync`, `cut`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, TextIO] = {}

    def path(self, log: str) -> Path:
        """The file of metrics, eval or norms."""
        return self._folder / f"{log}.jsonl"

    def append(self, log: str, line: Mapping[str, Any]) -> None:
        """Add a line to metrics, eval or norms. Numbers that are not finite become null."""
        if log not in self._open:
            self._open[log] = self.path(log).open("a", encoding="utf-8")
        finite = {name: json_value(value) for name, value in line.items()}
        with files.room_for(self.path(log), None, self.path(log)):
            self._open[log].write(json.dumps(finite, allow_nan=False) + "\n")

    def read(self, log: str) -> list[dict[str, Any]]:
        """All whole lines of metrics, eval or norms."""
        if log in self._open:
            self._open[log].flush()
        if not self.path(log).exists():
            return []
        with self.path(log).open(encoding="utf-8") as file:
            return [self._line(log, number, line) for number, line in enumerate(file, 1) if line.endswith("\n")]

    def sync(self) -> dict[str, int]:
        """Wait until all lines are on the disk; the logs' sizes in bytes."""
        for log, file in self._open.items():
            with files.room_for(self.path(log), None, self.path(log)):
                file.flush()
                os.fsync(file.fileno())
        return {log: self.path(log).stat().st_size for log in LOGS if self.path(log).exists()}

    def cut(self, sizes: Mapping[str, int]) -> None:
        """Cut the logs back to the sizes that `sync` gave. Raises BadInput for a log that is shorter."""
        self.close()
        for log in LOGS:
            path, size = self.path(log), sizes.get(log, 0)
            found = path.stat().st_size if path.exists() else 0
            require(found >= size, f"{path}: has {found} bytes, its checkpoint knew {size}")
            if found > size:
                os.truncate(path, size)

    def close(self) -> None:
        """Close the files."""
        while self._open:
            log, file = self._open.popitem()
            with files.room_for(self.path(log), None, self.path(log)):
                file.close()

    def _line(self, log: str, number: int, line: str) -> dict[str, Any]:
        try:
            return dict(json.loads(line))
        except (TypeError, ValueError):
            raise BadInput(f"{self.path(log)}: line {number} is damaged") from None


def json_value(value: Any) -> Any:
    """The value; None for a number that JSON has not."""
    return None if isinstance(value, float) and not -float("inf") < value < float("inf") else value
