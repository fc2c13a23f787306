"""Files that are whole or absent, and the lock."""

import multiprocessing
import os

import pytest

from relora_lab import files
from relora_lab.errors import FolderHeld


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.new_file(path) as writing:
        writing.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failed_folder_is_not_there(tmp_path):
    with pytest.raises(RuntimeError), files.new_folder(tmp_path / "f") as making:
        (making / "x").write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_a_new_folder_replaces_another_and_keeps_an_equal_one(tmp_path):
    folder, numbers = tmp_path / "f", []
    for content in ("one", "one", "two"):
        with files.new_folder(folder) as making:
            (making / "x").write_text(content)
        numbers.append(folder.stat().st_ino)
    assert (folder / "x").read_text() == "two"
    assert numbers[0] == numbers[1] != numbers[2]
    assert os.listdir(tmp_path) == ["f"]


def _hold(path, held, done):
    with files.locked(path):
        held.set()
        done.wait(30)


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / ".lock", held, done))
    holder.start()
    assert held.wait(30)
    with pytest.raises(FolderHeld, match=f"held by process {holder.pid} on"), files.locked(tmp_path / ".lock"):
        pass
    holder.kill()
    holder.join()
    with files.locked(tmp_path / ".lock"):
        pass
