"""Where texts come from: files, or a Hugging Face dataset. Both give documents to train on and documents held out.

A corpus is `stdlib` (the running Python's own standard library as text), a text file, a folder of text files or a
list of files; a document is a file. 5 % of the files, chosen by a hash of their relative path, are held out; where
that leaves either part empty (one file, say) the last 5 % of the text are. A dataset brings a split to hold out
("validation" or "test"), or 5 % of its rows, chosen by a hash of their number, are.
"""

import hashlib
import os
import stat
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from relora_lab.errors import BadInput, one_line, require
from relora_lab.settings import Data

HELD_OUT = 0.05
STDLIB_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}
STDLIB_LARGEST = 300_000
FILE_KINDS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Documents:
    """Documents to be read, as often as asked for, from the start and in a fixed order.

    `kind` is the setting they come from, `identity` (JSON) all that determines them, and `separator` stands after
    each where the tokenizer has no token for its end.
    """

    kind: str
    identity: Any
    separator: str
    train: Callable[[], Iterator[str]]
    held_out: Callable[[], Iterator[str]]


def of(data: Data) -> Documents:
    """The documents of these settings. Files are looked for now and read later, as datasets are loaded.

    Raises BadInput, naming the file or dataset: here if it is missing, while reading if it is not text.
    """
    return of_files(data.corpus) if data.dataset is None else of_dataset(data, data.dataset)


def held_out_by_draw(name: str) -> bool:
    """Is what has this name among the 5 % that are held out?"""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 < HELD_OUT


# ---- files


def of_files(spec: str | list[str]) -> Documents:
    """The texts of files, joined without a separator."""
    parts: tuple[list[Path], list[Path]] = ([], [])
    sizes, identity = [0, 0], []
    for name, path in _sources(spec):
        size, time = size_and_time("data.corpus", path)
        identity.append((name, os.path.realpath(path), size, time))
        drawn = held_out_by_draw(name)
        parts[drawn].append(path)
        sizes[drawn] += size
    if all(sizes):
        train, held_out = parts
        return Documents("corpus", identity, "", lambda: read_texts(train), lambda: read_texts(held_out))
    paths, total = [*parts[0], *parts[1]], sum(sizes)
    cut = total - round(total * HELD_OUT)
    return Documents(
        "corpus", identity, "", lambda: before(read_texts(paths), cut), lambda: after(read_texts(paths), cut)
    )


def before(texts: Iterable[str], cut: int) -> Iterator[str]:
    """The texts up to byte `cut` of all of them, or up to the character that this byte belongs to."""
    for text in texts:
        if cut <= 0:
            return
        content = text.encode()
        yield content[: _character(content, cut)].decode()
        cut -= len(content)


def after(texts: Iterable[str], cut: int) -> Iterator[str]:
    """What `before` leaves."""
    for text in texts:
        content = text.encode()
        if cut < len(content):
            yield content[_character(content, max(cut, 0)) :].decode()
        cut -= len(content)


def _character(content: bytes, position: int) -> int:
    """Where the character begins that this byte of UTF-8 belongs to."""
    while position < len(content) and content[position] & 0xC0 == 0x80:
        position -= 1
    return position


def read_texts(paths: Iterable[Path]) -> Iterator[str]:
    """The texts of files. Raises BadInput, naming it, for one that is no text."""
    for path in paths:
        try:
            text = path.read_bytes().decode()
        except OSError as error:
            _refuse("data.corpus", error, path)
        except UnicodeDecodeError as error:
            raise BadInput(f"data.corpus: {path}: is not UTF-8 text (byte {error.start})") from None
        if "\0" in text:
            raise BadInput(f"data.corpus: {path}: is binary (byte {len(text[: text.index(chr(0))].encode())} is 0)")
        yield text


def _sources(spec: str | list[str]) -> Iterator[tuple[str, Path]]:
    """(relative path, path) of the corpus's files, in a fixed order."""
    if spec == "stdlib":
        yield from stdlib()
        return
    for given in [spec] if isinstance(spec, str) else spec:
        path = Path(given).expanduser()
        size_and_time("data.corpus", path)
        if path.is_dir():
            found = list(_walk("data.corpus", path, set()))
            require(bool(found), f"data.corpus: {given}: holds no files")
            yield from found
        else:
            yield path.name, path


def stdlib() -> Iterator[tuple[str, Path]]:
    """(relative path, path) of the running Python's own library: no tests, no large tables."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for name, path in _walk("data.corpus", root, STDLIB_LEFT_OUT):
        if path.suffix == ".py" and path.stat().st_size <= STDLIB_LARGEST:
            yield name, path


def _walk(field: str, root: Path, left_out: set[str]) -> Iterator[tuple[str, Path]]:
    """Files below `root`, hidden ones and links to folders left out, sorted by relative path."""
    found = []
    for folder, subfolders, names in os.walk(root, onerror=lambda error: _refuse(field, error)):
        subfolders[:] = [name for name in subfolders if name not in left_out and not name.startswith(".")]
        found += [Path(folder) / name for name in names if not name.startswith(".")]
    return iter(sorted((path.relative_to(root).as_posix(), path) for path in found))


def size_and_time(field: str, path: Path) -> tuple[int, int]:
    """What changes as a file does. Raises BadInput naming `field`."""
    try:
        facts = path.stat()
    except OSError as error:
        _refuse(field, error)
    except ValueError as error:  # a NUL in the name
        raise BadInput(f"{field}: {str(path)!r}: cannot be read ({error})") from None
    regular = stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode)
    require(regular, f"{field}: {path}: is neither a file nor a folder")
    return facts.st_size, facts.st_mtime_ns


def _refuse(field: str, error: OSError, path: Path | None = None) -> NoReturn:
    named = str(path or error.filename)[-200:]  # what fails while it is read names no file
    raise BadInput(f"{field}: {named}: cannot be read ({error.strerror})") from None


# ---- datasets


def of_dataset(data: Data, name: str) -> Documents:
    """The rows of a dataset: of the hub, or of json and parquet shards here, which are read where they lie."""
    local, subset = Path(name).expanduser(), data.subset
    if subset is not None and (local / subset).is_dir():
        local, subset = local / subset, None
    here = is_local(local, name)
    shards = file_facts("data.dataset", local) if here else []
    identity = [name, data.subset, data.text_field, data.streaming, data.max_tokens, shards]
    splits = cache(lambda: _load(data, local if here else name, subset))

    def part(held_out: bool) -> Iterator[str]:
        found = splits()
        own = next((split for split in ("validation", "test") if split in found), None)
        if own is not None:
            return _rows(data, found[own if held_out else "train"])
        rows = enumerate(_rows(data, found["train"]))
        return (text for number, text in rows if held_out_by_draw(str(number)) == held_out)

    return Documents("dataset", identity, "\n", lambda: part(False), lambda: part(True))


def file_facts(field: str, path: Path) -> list[tuple[str, str, int, int]]:
    """Name, place, size and time of a file, or of every file below a folder. Raises BadInput naming `field`."""
    size_and_time(field, path)
    found = _walk(field, path, set()) if path.is_dir() else [(path.name, path)]
    return [(name, os.path.realpath(file), *size_and_time(field, file)) for name, file in found]


def tokenizer_identity(data: Data) -> str | list[tuple[str, str, int, int]]:
    """What determines the tokenizer: its name, or the files of a folder here."""
    local = Path(data.tokenizer).expanduser()
    own = data.tokenizer in ("bytes", "bpe")
    return data.tokenizer if own or not local.is_dir() else file_facts("data.tokenizer", local)


def is_local(local: Path, name: str) -> bool:
    """Is a dataset's name a path, and not one on the hub?"""
    return local.exists() or name.startswith(("/", ".", "~"))


def _load(data: Data, source: Path | str, subset: str | None) -> Any:
    """The dataset's splits by name, "train" among them."""
    named = f"data.dataset: {data.dataset}"
    if isinstance(source, str):
        found = load(named, source, subset, streaming=data.streaming)
    elif source.is_file():
        found = load(named, _kind(data, source), here=True, data_files=str(source))
    else:
        found = load(named, str(source), subset, here=True)
    require_split(named, found, "train")
    return found


def load(named: str, path: str, subset: str | None = None, *, here: bool = False, **options: Any) -> Any:
    """What datasets.load_dataset finds; what is `here` is read where it lies. Raises BadInput that names it."""
    import datasets  # takes a second to import

    try:
        if not here:
            return datasets.load_dataset(path, subset, **options)
        with tempfile.TemporaryDirectory() as locks:  # streaming: no second copy of what is on the disk already
            return datasets.load_dataset(path, subset, cache_dir=locks, streaming=True, **options)
    except StopIteration:  # of files that are empty
        raise BadInput(f"{named}: has no rows") from None
    except Exception as error:  # of the network, the hub, the builder: they share no class
        field = f"data.subset: {subset}" if "BuilderConfig" in str(error) else named
        raise BadInput(f"{field}: cannot be loaded ({one_line(error)})") from None


def require_split(named: str, found: Iterable[str], split: str) -> None:
    """Raise BadInput unless a dataset has this split."""
    require(split in found, f"{named}: has no split '{split}'; it has {', '.join(found)}")


def kind_of(path: Path) -> str | None:
    """The kind of a dataset's file, by its name; None for one that is none."""
    suffixes = [suffix for suffix in path.suffixes[-2:] if suffix not in (".gz", ".zst", ".xz", ".bz2")]
    return FILE_KINDS.get(suffixes[-1]) if suffixes else None


def _kind(data: Data, path: Path) -> str:
    kind = kind_of(path)
    if kind is None:
        raise BadInput(
            f"data.dataset: {data.dataset}: is no .json, .jsonl (.gz) or .parquet file; text is data.corpus"
        )
    return kind


def _rows(data: Data, split: Any) -> Iterator[str]:
    """The texts of a split's rows."""
    named, number = f"data.dataset: {data.dataset}", 0
    for batch in batches(named, split):
        if data.text_field not in batch:
            raise BadInput(f"data.text_field: no column '{data.text_field}'; there are {', '.join(batch)}")
        for text in batch[data.text_field]:
            require_text(f"{named}: {data.text_field} of row {number}", text)
            yield text
            number += 1


def require_text(named: str, value: object) -> None:
    """Raise BadInput, saying what it is, for what is no text."""
    kind = "null" if value is None else type(value).__name__
    require(isinstance(value, str), f"{named} is {kind}, not text")


def batches(named: str, split: Any) -> Iterator[dict[str, list[Any]]]:
    """The rows of a split by column, some at a time. Raises BadInput that begins as `named`."""
    try:
        yield from split.iter(batch_size=256)
    except Exception as error:  # of the network, gzip, pyarrow, datasets
        raise BadInput(f"{named}: cannot be read ({one_line(error)})") from None
