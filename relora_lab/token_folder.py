"""Folders of tokens below a cache: each is made once, whole or not at all, and checked before it is used."""

import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from relora_lab import files, manifest
from relora_lab.errors import BadInput, require


def made_once(folder: Path, make: Callable[[Path], None]) -> None:
    """See to it that a folder is there: `make` fills it on first use, and all that it wrote is noted in a manifest.

    Raises BadInput where a file of it is no longer as it was written.
    """
    if not folder.exists():
        with _parents_of(folder), files.in_turn(folder.with_name(f".{folder.name}.lock")):
            if not folder.exists():  # nobody made it meanwhile
                for left_by_a_killed_process in folder.parent.glob(f".{folder.name}-*"):
                    shutil.rmtree(left_by_a_killed_process)
                with files.new_folder(folder) as making:
                    make(making)
                    manifest.record(making, *sorted(path.name for path in making.iterdir()))
    try:
        require(bool(manifest.read(folder)), f"{folder / 'manifest.json'}: is missing")
        manifest.require_undamaged(folder, [""])
    except BadInput as error:
        raise BadInput(f"{error}; remove {folder}, which is made again when needed") from None


def bar(what: str, unit: str, total: int | None = None) -> tqdm:
    """Progress on stderr if that is a terminal and it takes long; a worker's is its driver's to show."""
    hidden = True if multiprocessing.parent_process() else None
    return tqdm(desc=what, total=total, unit=unit, unit_scale=True, disable=hidden, delay=1)


@contextmanager
def _parents_of(folder: Path) -> Iterator[None]:
    """Make the folders above `folder`; those made here and left empty by an error are removed again."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for parent in missing:
                parent.rmdir()
        raise
