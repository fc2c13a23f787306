"""A task for machines without a network: from which package of the standard library is a snippet of source?

Real text, labels by construction. No line that names one of the packages is in a snippet, no snippet is there twice,
and no file has snippets in both parts. All packages have as many: what is most frequent says nothing.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from relora_lab import documents
from relora_lab.errors import require

SHORTEST, LONGEST = 100, 160  # bytes of a snippet
HELD_OUT, MOST_HELD_OUT = 0.1, 0.2  # of a package's snippets: whole files, in a random order, until there are enough
MOST = 2000  # snippets of a package, in each part

Snippet = tuple[str, int]  # text, label


def sources(packages: Sequence[str]) -> list[list[tuple[str, Path]]]:
    """(relative path, path) of the files of each package."""
    found = list(documents.stdlib())
    files = [[file for file in found if file[0].startswith(f"{package}/")] for package in packages]
    for package, own in zip(packages, files, strict=True):
        require(len(own) > 1, f"task.name: this Python's standard library has no sources of the package '{package}'")
    return files


def of_packages(packages: Sequence[str]) -> tuple[list[Snippet], list[Snippet]]:
    """(training, held-out) snippets, labelled by the number of their package, in a random but fixed order."""
    snippets = [[list(_snippets(path, packages)) for _, path in _drawn(files)] for files in sources(packages)]
    seen = Counter(text for files in snippets for texts in files for text in texts)
    training, held_out = [], []
    for files in snippets:
        once = [[text for text in texts if seen[text] == 1] for texts in files]
        total, held, kept = sum(map(len, once)), list[str](), list[str]()
        for texts in once:
            taken = len(held) < HELD_OUT * total and len(held) + len(texts) <= MOST_HELD_OUT * total
            (held if taken else kept).extend(texts)
        training.append(kept)
        held_out.append(held)
    return _balanced(training), _balanced(held_out)


def _balanced(by_package: list[list[str]]) -> list[Snippet]:
    """As many of each package, those with the lowest hashes; sorted by hash."""
    count = min(MOST, *map(len, by_package))
    taken = [(text, label) for label, texts in enumerate(by_package) for text in sorted(texts, key=_hash)[:count]]
    return sorted(taken, key=lambda snippet: _hash(snippet[0]))


def _drawn(files: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """The files in an order that is drawn by their names."""
    return sorted(files, key=lambda file: _hash(file[0]))


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _snippets(path: Path, packages: Sequence[str]) -> Iterator[str]:
    """What a file has: whole lines that follow each other, but for blank ones and those that name a package."""
    [text], taken, size = documents.read_texts([path]), list[str](), 0
    for line in map(str.strip, text.splitlines()):
        if not line or any(package in line.lower() for package in packages):
            continue
        taken.append(line)
        size += len(line.encode()) + 1
        if size > SHORTEST:
            if size <= LONGEST + 1:
                yield "\n".join(taken)
            taken, size = [], 0
