"""manifest.json: the sha256 of every finished file of a run folder, by which damage is found before it is read."""

from collections.abc import Callable, Iterable
from pathlib import Path

from relora_lab import files


def read(folder: Path) -> dict[str, str]:
    """sha256 by path in the folder. Raises BadInput if manifest.json is damaged."""
    return files.read_json(folder / "manifest.json")


def record(folder: Path, *names: str) -> None:
    """Note the sha256 of finished files (all files of a folder)."""
    noted = read(folder)
    for name in names:
        path = folder / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            noted[file.relative_to(folder).as_posix()] = files.sha256(file)
    files.write_json(folder / "manifest.json", dict(sorted(noted.items())))


def require_undamaged(folder: Path, below: Iterable[str], sha256: Callable[[Path], str] = files.sha256) -> None:
    """Raise BadInput, naming it, for the first noted file that is missing or not as it was written.

    Only for those whose path begins as one of `below` does; `sha256` gives a file's hash.
    """
    for name, expected in read(folder).items():
        if name.startswith(tuple(below)):
            files.require_sha256(folder / name, expected, sha256)
