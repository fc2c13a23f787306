"""The task made of the standard library: balanced, without overlap, without the answer in it, and learnable."""

from collections import Counter
from pathlib import Path

import pytest

from relora_lab import documents, snippets
from relora_lab.errors import BadInput
from relora_lab.tasks import PACKAGES


@pytest.fixture(scope="module")
def parts():
    return snippets.of_packages(PACKAGES)


def test_every_package_has_as_many(parts):
    for part, least in zip(parts, (600, 80), strict=True):
        counts = Counter(label for _, label in part)
        assert sorted(counts) == list(range(len(PACKAGES)))
        assert len(set(counts.values())) == 1
        assert counts[0] >= least


def test_no_snippet_is_there_twice_and_each_is_short(parts):
    texts = [text for part in parts for text, _ in part]
    assert len(set(texts)) == len(texts)
    assert all(snippets.SHORTEST <= len(text.encode()) <= snippets.LONGEST for text in texts)


def test_no_snippet_names_a_package(parts):
    assert not [text for part in parts for text, _ in part if any(name in text.lower() for name in PACKAGES)]


def test_no_file_has_snippets_in_both_parts(parts):
    train, held_out = ({text for text, _ in part} for part in parts)
    for files in snippets.sources(PACKAGES):
        sides = [{bool(s in train) for s in own if s in train | held_out} for own in map(_snippets, files)]
        assert all(len(side) <= 1 for side in sides)
        assert {True, False} == set().union(*sides)


def _snippets(file: tuple[str, Path]) -> list[str]:
    return list(snippets._snippets(file[1], PACKAGES))


def test_snippets_are_lines_of_their_package(parts):
    sources = snippets.sources(PACKAGES)
    lines = [{line.strip() for _, path in files for line in path.read_text().splitlines()} for files in sources]
    assert all(set(text.split("\n")) <= lines[label] for part in parts for text, label in part)


def test_it_is_the_same_every_time_and_the_order_is_mixed(parts):
    assert snippets.of_packages(PACKAGES) == parts
    assert all(len({label for _, label in part[:60]}) == len(PACKAGES) for part in parts)


def test_where_the_library_lies_plays_no_part(tmp_path, parts, monkeypatch):
    moved = []
    for name, path in documents.stdlib():
        if name.split("/")[0] in PACKAGES:
            target = tmp_path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
            moved.append((name, target))
    monkeypatch.setattr(documents, "stdlib", lambda: iter(moved))
    assert snippets.of_packages(PACKAGES) == parts


def test_a_python_without_the_package_is_refused_by_its_name():
    with pytest.raises(BadInput, match=r"^task.name: this Python's standard library has no .* 'nonesuch'$"):
        snippets.of_packages(["email", "nonesuch"])


def test_a_linear_model_tells_the_packages_apart(parts):
    """Of unseen files, and far above the sixth of a guess."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import SGDClassifier

    (train, labels), (held_out, expected) = (zip(*part, strict=True) for part in parts)
    read = TfidfVectorizer(analyzer="char", ngram_range=(2, 4), sublinear_tf=True, min_df=2)
    model = SGDClassifier(loss="log_loss", alpha=1e-5, random_state=0).fit(read.fit_transform(train), labels)
    assert model.score(read.transform(held_out), expected) > 0.7
