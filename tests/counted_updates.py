"""Imported by the server that workers are forked from: every update is written down, as "folder step"."""

import os
from pathlib import Path

from relora_lab.trainer import Trainer

_update = Trainer._update


def _counting(self):
    line = _update(self)
    with Path(os.environ["COUNTED_UPDATES"]).open("a") as file:
        file.write(f"{self.folder.path.name} {self.state.step}\n")
    return line


Trainer._update = _counting
