"""Nothing that was pickled is ever loaded: not opened where its name tells, refused where its content does."""

import ast
import os
import pickle
import re

import numpy as np
import pytest
import torch
from conftest import ROOT, run
from safetensors.torch import save_file

from analysis.checkpoints import open_checkpoint
from relora_lab.errors import BadInput


class Bomb:
    """What runs a command where it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".npy", ".npz", ".PT"])
def test_a_file_with_a_pickles_name_is_not_opened(tmp_path, capsys, suffix):
    """It is a pipe here: who opened it would wait for ever."""
    os.mkfifo(tmp_path / f"model{suffix}")
    save_file({"layers.0.q.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    for pair in ([f"model{suffix}", "a.safetensors"], ["a.safetensors", f"model{suffix}"]):
        code, _, err = run(capsys, "spectrum", *(tmp_path / name for name in pair))
        assert (code, len(err.splitlines())) == (2, 1)
        assert f"model{suffix}: pickle files are never loaded" in err


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_another_name_is_recognised(tmp_path, protocol):
    path, marker = tmp_path / "model.safetensors", tmp_path / "ran"
    for content in (Bomb(marker), {"weight": Bomb(marker)}, [Bomb(marker)]):
        path.write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(BadInput, match=r"this is a pickle, which can run code; only safetensors are read"):
            open_checkpoint(path)
    assert not marker.exists()


def test_what_torch_and_numpy_save_is_recognised(tmp_path):
    path = tmp_path / "model.safetensors"
    torch.save({"w": torch.ones(2)}, path)
    with pytest.raises(BadInput, match="this is a pickle"):
        open_checkpoint(path)
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(BadInput, match="this is a pickle"):
        open_checkpoint(path)
    with path.open("wb") as file:
        np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match="this is a pickle"):
        open_checkpoint(path)


def test_a_folder_of_pickles_is_refused_unread(tmp_path):
    os.mkfifo(tmp_path / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"holds only pytorch_model\.bin, and pickle files are never loaded"):
        open_checkpoint(tmp_path)


def test_settings_are_toml_alone(tmp_path, capsys):
    path = tmp_path / "run.toml"
    for content in (pickle.dumps({"training": 1}), b"training:\n  steps: 3\n", b'{"training": {"steps": 3}}'):
        path.write_bytes(content)
        code, _, err = run(capsys, "train", path)
        assert (code, len(err.splitlines())) == (2, 1)
        assert re.search(r"run\.toml: (not valid TOML|is not UTF-8)", err)


LOADERS = {"load", "loads", "Unpickler", "read_pickle", "safe_load", "full_load", "unsafe_load", "eval", "exec"}
PICKLERS = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "yaml"}
OWNERS = PICKLERS | {"torch", "np", "numpy", "pd", "pandas"}


@pytest.mark.parametrize("folder", ["relora_lab", "analysis", "experiments"])
def test_no_code_loads_a_pickle_or_runs_text(folder):
    found = [
        f"{path}:{node.lineno}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if loads(node)
    ]
    assert found == []


def loads(node):
    """Does this load what was pickled, or run a text?"""
    if isinstance(node, ast.Import | ast.ImportFrom):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
        return any(str(module).split(".")[0] in PICKLERS for module in modules)
    if not isinstance(node, ast.Call):
        return False
    if any(keyword.arg == "allow_pickle" for keyword in node.keywords):
        return True
    match node.func:
        case ast.Name(name):
            return name in ("eval", "exec")
        case ast.Attribute(ast.Name(owner), name):
            return owner in OWNERS and name in LOADERS
    return False


@pytest.mark.parametrize(
    "code",
    ["torch.load('x')", "import pickle", "from joblib import load", "np.load('x', allow_pickle=True)", "eval('1')"],
)
def test_such_code_would_be_noticed(code):
    assert any(map(loads, ast.walk(ast.parse(code))))
