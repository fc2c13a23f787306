"""Figures as files; those of many runs are drawn by a second process, while the next numbers are computed here.

Numbers travel as Arrow files, which keep the order of labels, in a folder that is gone when all is drawn.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pandas as pd

from analysis import figures

SUFFIXES = ("svg", "png", "pdf")


@dataclass(frozen=True)
class Drawing:
    """A figure as files, by suffix, and its width in inches."""

    files: dict[str, bytes]
    width: float


def draw(module: ModuleType, frame: pd.DataFrame) -> Drawing:
    """The figure of a module."""
    figure, files = figures.make(module, frame), {}
    for suffix in SUFFIXES:
        buffer = io.BytesIO()
        figures.save(figure, buffer, suffix)
        files[suffix] = buffer.getvalue()
    return Drawing(files, float(figure.get_figwidth()))


def now(module: ModuleType, frame: pd.DataFrame) -> Future[Drawing]:
    """The figure of a module, drawn before this returns."""
    drawing: Future[Drawing] = Future()
    drawing.set_result(draw(module, frame))
    return drawing


class Draughtsman:
    """`with Draughtsman() as draughtsman:` a second process that draws the lab's figures, one after the other."""

    def __enter__(self) -> "Draughtsman":
        self._folder = Path(tempfile.mkdtemp(prefix="relora-lab-"))
        home = str(Path(figures.__file__).parents[2])  # and no folder of that name where we are
        path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"]
        self._process = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._thread = ThreadPoolExecutor(1)
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()  # all is drawn, or is not wanted any more
        self._thread.shutdown(cancel_futures=True)
        self._process.communicate()
        shutil.rmtree(self._folder)

    def draw(self, module: ModuleType, frame: pd.DataFrame) -> Future[Drawing]:
        """The figure of a module of analysis.figures, when it is drawn."""
        fd, path = tempfile.mkstemp(dir=self._folder)
        os.close(fd)
        frame.reset_index(drop=True).to_feather(path)
        return self._thread.submit(self._ask, module.__name__, path)

    def _ask(self, name: str, path: str) -> Drawing:
        assert self._process.stdin
        assert self._process.stdout
        try:
            print(json.dumps([name, path]), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            raise RuntimeError(f"{name}: the process that draws it has ended")
        return Drawing({suffix: Path(f"{path}.{suffix}").read_bytes() for suffix in SUFFIXES}, json.loads(answer))


def serve() -> None:
    """Draw what stdin names, a figure and its file of numbers a line, beside that file; answer with widths."""
    known = {module.__name__: module for module in figures.available()}
    for line in sys.stdin:
        name, path = json.loads(line)
        drawing = draw(known[name], pd.read_feather(path))
        for suffix, content in drawing.files.items():
            Path(f"{path}.{suffix}").write_bytes(content)
        try:
            print(json.dumps(drawing.width), flush=True)
        except BrokenPipeError:  # nobody waits any more
            return
