"""What is a checkpoint: folders, shards, hub names; and what is refused unread."""

import json

import huggingface_hub
import pytest
import torch
from checkpoint_files import block, model
from safetensors.torch import save_file

from analysis.checkpoints import open_checkpoint
from analysis.matching import match_models
from relora_lab.errors import BadInput


def test_a_quantised_model_is_refused_whatever_its_tensors_are_called(tmp_path):
    start = model(tmp_path / "a", block("layers.0.q_proj"))
    final = model(tmp_path / "b", block("layers.0.q_proj"), config={"quantization_config": {"quant_method": "mxfp4"}})
    with pytest.raises(BadInput, match=r"b: is quantised \(mxfp4\)"):
        match_models(start, final)


def test_an_index_names_the_shards_that_count(tmp_path):
    folder = model(tmp_path / "a", block("layers.0.q_proj"))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    save_file({"layers.0.k_proj.weight": torch.ones(8, 8)}, folder / "model-00002-of-00002.safetensors")
    save_file({"layers.0.q_proj.weight": torch.ones(8, 8)}, folder / "consolidated.safetensors")
    shards = {
        f"layers.0.{role}_proj.weight": f"model-0000{n}-of-00002.safetensors" for n, role in ((1, "q"), (2, "k"))
    }
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    assert set(open_checkpoint(folder).tensors) == set(shards)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BadInput, match=r"model-00002-of-00002\.safetensors: is missing"):
        open_checkpoint(folder)
    index.write_text(json.dumps({"weight_map": {"x": "../b/model.safetensors"}}))
    with pytest.raises(BadInput, match="names a file elsewhere"):
        open_checkpoint(folder)


def test_a_name_is_looked_for_on_the_hub_and_only_its_model_is_fetched(tmp_path, monkeypatch):
    shards = {"layers.0.q_proj.weight": "x.safetensors"}
    whole, asked = model(tmp_path / "whole", block("layers.0.q_proj")), []
    sharded = model(tmp_path / "sharded", block("layers.0.q_proj"))
    (sharded / "model.safetensors").rename(sharded / "x.safetensors")
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))

    def download(repository, *, revision, allow_patterns, ignore_patterns):
        assert ignore_patterns == "*/*"
        if repository == "no/such":
            raise OSError("404: not there\nreally")
        asked.append((repository, revision, allow_patterns))
        return str(tmp_path / repository.removeprefix("org/"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for name in ("org/whole@v2", "org/sharded"):
        assert set(open_checkpoint(name).tensors) == set(shards)
    assert {(repository, revision) for repository, revision, _ in asked} == {
        ("org/whole", "v2"),
        ("org/sharded", None),
    }
    wanted = {repository: set(patterns) for repository, _, patterns in asked[1::2]}  # after the JSON files
    assert wanted == {
        "org/whole": {"model.safetensors", "adapter_model.safetensors"},
        "org/sharded": {"x.safetensors"},
    }
    with pytest.raises(BadInput, match="no/such: no such file or folder, nor to be had from the hub: 404: not there"):
        open_checkpoint("no/such")
    monkeypatch.chdir(tmp_path)
    for here in ("whole/nothing", tmp_path / "nothing", "../nothing"):  # what lies beside files that exist is no name
        with pytest.raises(BadInput, match=r"no such file or folder$"):
            open_checkpoint(here)
    assert len(asked) == 4
    assert whole.exists()


def test_a_half_fetched_model_is_refused(tmp_path):
    folder = model(tmp_path / "a", block("layers.0.q_proj"))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(BadInput, match=r"shards are missing: model-00001-of-00002\.safetensors is one of 1"):
        open_checkpoint(folder)
    index = {
        "layers.0.q_proj.weight": "model-00001-of-00002.safetensors",
        "layers.1.q_proj.weight": "model-00001-of-00002.safetensors",
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(BadInput, match=r"index\.json names layers\.1\.q_proj\.weight, but .* holds none"):
        open_checkpoint(folder)
    save_file(
        {"layers.0.k_proj.weight": torch.ones(8, 8)}, folder / "model.safetensors"
    )  # what transformers would load
    assert set(open_checkpoint(folder).tensors) == {"layers.0.k_proj.weight"}


def test_what_is_no_model_is_refused(tmp_path):
    start = model(tmp_path / "a", block("layers.0.q_proj"))
    factors = {"base_model.model.layers.0.q_proj.lora_A.weight": torch.ones(2, 8)}
    save_file(factors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "x.PT").write_bytes(b"")
    for path, message in {
        "/dev/null": "is neither a file nor a folder",
        tmp_path / "adapter_model.safetensors": r"holds factors of an adapter .*; give the adapter's folder",
        tmp_path / "x.PT": "pickle files are never loaded",
    }.items():
        with pytest.raises(BadInput, match=message):
            match_models(start, path)
    both = {"layers.0.q_proj": torch.ones(8, 8), "layers.0.q_proj.weight": torch.zeros(8, 8)}
    for name in ("x", "y"):
        save_file(both, tmp_path / f"{name}.safetensors")
    with pytest.raises(BadInput, match=r"layers\.0\.q_proj and layers\.0\.q_proj\.weight are both there"):
        match_models(tmp_path / "x.safetensors", tmp_path / "y.safetensors")
