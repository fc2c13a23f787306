"""Files that are whole or absent: written beside their place, synced, renamed. And a lock no crash leaves behind."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from relora_lab.errors import BadInput, FolderHeld, NoSpace, one_line, require
from relora_lab.faults import point

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary sibling to fill; it becomes `path` when the block ends without an error.

    A folder that is there already stays if it holds the same files, and is replaced if not.
    """
    with room_for(path, 1):
        making = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        making.chmod(0o777 & ~_umask())
        point(f"begun {path.name}")
        with room_for(path, None, making):
            yield making
        for folder, _, names in os.walk(making):
            for name in names:
                sync(Path(folder) / name)
            sync(Path(folder))
        point(f"written {path.name}")
        if path.exists() and _content(path) != _content(making):
            path.rename(making.with_name(f"{making.name}-old"))
        try:
            making.rename(path)
        except OSError as error:  # another process was first, or it is there already
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        sync(path.parent)
        point(f"renamed {path.name}")
    except NoSpace as full:
        if making not in full.path.parents:
            raise
        raise NoSpace(path / full.path.relative_to(making), full.needs, full.free) from full
    finally:
        shutil.rmtree(making, ignore_errors=True)
        shutil.rmtree(making.with_name(f"{making.name}-old"), ignore_errors=True)


@contextmanager
def new_file(path: Path, needs: int | None = None) -> Iterator[Path]:
    """A temporary sibling to write; it replaces `path` when the block ends without an error.

    Raises NoSpace where it does not fit; `needs` is how many bytes it will have, if that is known.
    """
    writing = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with room_for(path, needs, writing):
            point(f"begun {path.name}")
            yield writing
            sync(writing)
            point(f"written {path.name}")
            writing.replace(path)
            sync(path.parent)
            point(f"renamed {path.name}")
    finally:
        writing.unlink(missing_ok=True)


@contextmanager
def room_for(path: Path, needs: int | None, writing: Path | None = None) -> Iterator[None]:
    """Raise NoSpace, naming `path`, where the block runs out of space.

    It `needs` so many bytes; if that is not known, more than what it was `writing` has got.
    """
    try:
        yield
    except NoSpace:
        raise
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise NoSpace(path, 1 + _size(writing) if needs is None else needs, _free(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with new_file(path, len(content)) as writing:
        writing.write_bytes(content)


def copy(source: Path, target: Path) -> None:
    """Copy a file's content. Raises NoSpace where it does not fit."""
    with room_for(target, source.stat().st_size):
        shutil.copyfile(source, target)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file. Raises BadInput, naming it, for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise BadInput(f"{path}: is damaged ({one_line(error)})") from None
    require(isinstance(found, dict), f"{path}: is damaged (no JSON object)")
    return dict(found)


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`: a hard link, or a copy where links fail."""
    try:
        os.link(source, target)
    except OSError:
        copy(source, target)


def sha256(path: Path) -> str:
    """Hash of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_sha256(path: Path, expected: str, sha256: Callable[[Path], str] = sha256) -> None:
    """Raise BadInput unless a file has this hash; `sha256` gives it."""
    require(path.exists(), f"{path}: is missing")
    same = sha256(path) == expected
    require(same, f"{path}: is damaged or was changed: its sha256 is not that of what was written")


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; the kernel lets go of it with the process. Raises FolderHeld, naming the holder."""
    with path.open("a+") as file:
        for last in (False, False, True):  # `is_locked` holds it for a moment
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if last:
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    raise FolderHeld(f"{path.parent}: is held by {holder}") from None
                time.sleep(0.01)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def is_locked(path: Path) -> bool:
    """Does a process hold the lock file `path`?"""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Hold the lock file `path` after those who came before; the last thing it does is to remove it."""
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in folder.rglob("*") if path.is_file()}


def _size(path: Path | None) -> int:
    """Bytes in a file, or in all those of a folder."""
    found = [] if path is None else [path, *path.rglob("*")]
    return sum(file.stat().st_size for file in found if file.is_file())


def _free(path: Path) -> int:
    """How many bytes a file there may have."""
    most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    free = shutil.disk_usage(next(parent for parent in path.absolute().parents if parent.exists())).free
    return free if most == resource.RLIM_INFINITY else min(free, most)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
