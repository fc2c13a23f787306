"""A second look at the same files computes nothing, and never shows what was in other ones."""

import os

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from analysis import cache, spectra
from analysis.spectra import compare


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RELORA_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_hashes", {})
    return tmp_path / "cache"


@pytest.fixture
def ends(tmp_path):
    return write(tmp_path / "a.safetensors", 0), write(tmp_path / "b.safetensors", 1)


def write(path, seed, layers=3):
    random = torch.Generator().manual_seed(seed)
    save_file({f"layers.{n}.q_proj.weight": torch.randn(12, 8, generator=random) for n in range(layers)}, path)
    return path


def computed(monkeypatch):
    """The matrices whose singular values are computed from now on."""
    shapes, original = [], spectra.singular_values
    monkeypatch.setattr(spectra, "singular_values", lambda W, how: shapes.append(W.shape) or original(W, how))
    return shapes


def same(first, second):
    pd.testing.assert_frame_equal(first.spectra, second.spectra)
    pd.testing.assert_frame_equal(first.matrices, second.matrices)


def test_a_second_look_computes_nothing_and_is_the_same_to_the_bit(ends, monkeypatch):
    fresh = compare(*ends, cache=False)
    first = compare(*ends)
    shapes = computed(monkeypatch)
    same(first, fresh)
    same(compare(*ends), fresh)
    assert shapes == []
    same(compare(*ends, cache=False), fresh)
    assert len(shapes) == 3


def test_a_wider_look_computes_only_what_is_new(ends, monkeypatch):
    compare(*ends, layers=1)
    shapes = computed(monkeypatch)
    same(compare(*ends), compare(*ends, cache=False))
    assert len(shapes) == 2 + 3


def test_it_follows_what_is_in_the_files_and_not_their_names(ends, monkeypatch):
    first = compare(*ends)
    moved = [path.rename(path.with_name(f"moved-{path.name}")) for path in ends]
    shapes = computed(monkeypatch)
    same(compare(*moved), first)
    assert shapes == []
    times = moved[1].stat()
    write(moved[1], 2)  # as long, and as old
    os.utime(moved[1], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not np.allclose(compare(*moved).spectra["sigma"], first.spectra["sigma"])
    assert len(shapes) == 3


def test_methods_are_kept_apart(ends, monkeypatch):
    compare(*ends)
    shapes = computed(monkeypatch)
    compare(*ends, method="svd")
    assert len(shapes) == 3
    compare(*ends, method="gram")  # what auto did
    assert len(shapes) == 3


def test_non_finite_matrices_are_remembered_as_such(ends):
    broken = torch.full((12, 8), float("nan"))
    save_file({f"layers.{n}.q_proj.weight": broken if n == 1 else torch.ones(12, 8) * n for n in range(3)}, ends[1])
    first = compare(*ends)
    assert first.matrices["nonfinite"].tolist() == [0, 96, 0]
    same(compare(*ends), first)


def test_a_damaged_or_forbidden_cache_is_none(ends, folder, monkeypatch, tmp_path):
    first = compare(*ends)
    entries = list(folder.glob("*.safetensors"))
    assert len(entries) == 1
    for content in (b"", b"{}", entries[0].read_bytes()[:-5]):
        entries[0].write_bytes(content)
        same(compare(*ends), first)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RELORA_LAB_CACHE", str(tmp_path / "file" / "below"))
    same(compare(*ends), first)
    assert not list(folder.glob(".*"))


def test_a_file_is_hashed_once_even_where_nothing_can_be_written(ends, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RELORA_LAB_CACHE", str(tmp_path / "file" / "below"))
    hashed, original = [], cache.files.sha256
    monkeypatch.setattr(cache.files, "sha256", lambda path: hashed.append(path) or original(path))
    compare(*ends)
    compare(*ends)
    assert sorted(hashed) == sorted(ends)


def test_a_damaged_note_of_a_hash_is_none(ends, folder, monkeypatch):
    first = compare(*ends)
    notes = list((folder / "sha256").iterdir())
    assert len(notes) == 2
    for content in (b"", b"\xff\xfe", b"0" * 63):
        for note in notes:
            note.write_bytes(content)
        monkeypatch.setattr(cache, "_hashes", {})  # as another process
        same(compare(*ends), first)
        assert cache.sha256(ends[0]) == cache.files.sha256(ends[0])


def test_without_it_nothing_is_written(ends, folder):
    compare(*ends, cache=False)
    assert not folder.exists()


def test_its_place_is_the_users_cache_folder(ends, tmp_path, monkeypatch):
    monkeypatch.delenv("RELORA_LAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    compare(*ends)
    assert list((tmp_path / "xdg" / "relora_lab").glob("*.safetensors"))


def test_an_interrupted_look_keeps_what_it_had(ends, monkeypatch):
    original, done = spectra.singular_values, []

    def interrupted(W, how):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return original(W, how)

    monkeypatch.setattr(spectra, "singular_values", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(*ends, workers=1)
    monkeypatch.setattr(spectra, "singular_values", original)
    shapes = computed(monkeypatch)
    compare(*ends)
    assert len(shapes) == 2


def test_a_hash_is_that_of_the_content(ends):
    for _ in range(2):
        assert cache.sha256(ends[0]) == cache.files.sha256(ends[0])
