"""Is all that is below a folder of runs still what was written?"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from relora_lab import checkpoints, files, manifest
from relora_lab.errors import BadInput, require
from relora_lab.runs import RunFolder
from relora_lab.workspace import read_grid, run_folders, stage_folders, token_cache


def faults(folder: Path) -> Iterator[str]:
    """What is wrong with each file of a run, or of a folder of runs and what they share: "" where nothing is.

    Finished files have a sha256 in a manifest, and the files of a state in its state.json; what changes as a run goes
    on (status.json, and until it has ended its settings and logs) is only read.
    """
    run = RunFolder(folder)
    if run.started:
        yield from _of_run(run)
        return
    for run in [*run_folders(folder), *stage_folders(folder)]:
        yield from _of_run(run)
    for tokens in sorted(token_cache(folder).glob("[!.]*/")):
        yield from _of_files(tokens, lambda _: True)
    yield _fault(lambda: read_grid(folder))


def _of_run(run: RunFolder) -> Iterator[str]:
    yield _fault(lambda: (run.config, run.environment, run.status))
    try:
        ended = run.ended
    except BadInput:
        return
    if ended:
        yield _fault(
            lambda: require("config.toml" in run.manifest, f"{run.path / 'manifest.json'}: is cut or missing")
        )
    yield from _of_files(run.path, lambda name: ended or "/" in name)
    for state in checkpoints.states(run.checkpoints):
        yield _fault(partial(checkpoints.require_undamaged, state))


def _of_files(folder: Path, counts: Callable[[str], bool]) -> Iterator[str]:
    """What is wrong with each file that the folder's manifest lists, if its name counts."""
    try:
        noted = manifest.read(folder)
    except BadInput as error:
        yield str(error)
        return
    for name, sha256 in noted.items():
        if counts(name):
            yield _fault(partial(files.require_sha256, folder / name, sha256))


def _fault(check: Callable[[], object]) -> str:
    try:
        check()
    except BadInput as error:
        return str(error)
    return ""
