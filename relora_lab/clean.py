"""What can go from a folder of runs, since nothing needs it any more or a command makes it again."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

from relora_lab.errors import BadInput, FolderHeld
from relora_lab.runs import RunFolder
from relora_lab.workspace import jobs_folder, run_folders, stage_folders, token_cache


@dataclass(frozen=True)
class Removable:
    """A folder or file that can go, and why."""

    path: Path
    why: str
    holder: RunFolder | None = None  # whose lock guards it

    @property
    def size(self) -> int:
        """Bytes; what a hard link shares with another folder is freed when both are gone."""
        files = [self.path] if self.path.is_file() else [path for path in self.path.rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files)


def removable(runs: Path) -> list[Removable]:
    """What can go below `runs`: leftovers of killed processes, states of ended runs and, where every run has
    ended, the stages and token files that they shared. Runs that another process holds are left alone."""
    found, ended = [], True
    folders = run_folders(runs)
    for run in folders:
        ended = ended and run.ended
        found += list(_of_run(run))
    if ended and folders:
        shared = {
            stage.path: "a beginning that these runs shared; trained again when needed"
            for stage in stage_folders(runs)
        }
        shared |= {token_cache(runs): "the text as tokens; made again when needed"}
        shared |= {jobs_folder(runs): "what jobs on other machines said; all of them have ended"}
        found += [Removable(path, why) for path, why in shared.items() if path.exists()]
    return found


def remove(found: list[Removable]) -> None:
    """Delete them. Raises FolderHeld if a process has taken a run up since; what is left then stays."""
    for item in found:
        with item.holder.lock() if item.holder else nullcontext():
            if item.path.is_dir():
                shutil.rmtree(item.path)
            else:
                item.path.unlink(missing_ok=True)


def _of_run(run: RunFolder) -> Iterator[Removable]:
    with ExitStack() as held:
        try:
            held.enter_context(run.lock())
        except FolderHeld:
            return
        try:
            ended = bool(run.config) and run.ended
        except BadInput:  # damaged, or a newer version's
            return
        for path in run.leftovers():
            yield Removable(path, "left half written by a killed process", run)
        if ended and run.has_checkpoint:
            yield Removable(run.checkpoints, f"the state of a run that has {run.state}; it is not continued", run)
