"""Safetensors files as they are written here: what the library reads, for everyone, always the same bytes."""

import os
import stat

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from relora_lab import tensor_files
from relora_lab.errors import BadInput

DTYPES = [getattr(torch, name) for name in tensor_files.OF_TORCH]
NAMES = st.from_regex(r"[a-z]{1,3}(\.[a-zé0-9_]{1,3}){0,2}", fullmatch=True)
SHAPES = st.lists(st.integers(0, 5), max_size=3)


@given(st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=5))
def test_the_library_reads_what_is_written_and_the_other_way_round(tmp_path_factory, about):
    folder = tmp_path_factory.mktemp("files")
    generator = torch.Generator().manual_seed(0)
    tensors = {n: (torch.randn(shape, generator=generator) * 9).to(dtype) for n, (shape, dtype) in about.items()}
    tensor_files.write(folder / "ours.safetensors", tensors)
    save_file(tensors, folder / "theirs.safetensors", metadata={"format": "pt"})
    for found in (load_file(folder / "ours.safetensors"), tensor_files.read(folder / "theirs.safetensors")):
        assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()} == {
            name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()
        }
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    header = tensor_files.header(folder / "ours.safetensors")
    assert {name: entry.shape for name, entry in header.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    assert header.metadata == {"format": "pt"}


def test_files_are_readable_by_others_and_the_same_bytes_each_time(tmp_path):
    tensors = {name: torch.arange(6.0).reshape(2, 3).T for name in "zab"}
    tensor_files.write(tmp_path / "one", tensors)
    tensor_files.write(tmp_path / "two", dict(reversed(tensors.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o666 & ~mask
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("model.layers.0.self_attn.q_proj.weight", True),
        ("lm_head", True),
        ("blk.0:attn_k-2.wéight", True),
        ("a" * 500, True),
        *((name, False) for name in ("", ".", "a..b", ".a", "a.", "../../etc/x", "a/b", "a\\b")),
        *((name, False) for name in ("a b", "a\0", "a\nb")),
        ("a" * 501, False),
        ("a\u202eb", False),
    ],
)
def test_what_a_tensor_may_be_called(name, is_one):
    assert tensor_files.is_module_path(name) == is_one


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_what_is_no_file_is_not_opened(tmp_path, kind):
    path = tmp_path / "x.safetensors"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(BadInput, match=r"x\.safetensors: is no file"):
        tensor_files.header(path)
    with pytest.raises(BadInput, match=r"nothing\.safetensors: cannot be read"):
        tensor_files.header(tmp_path / "nothing.safetensors")
