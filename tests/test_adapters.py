"""`relora-lab export`: a run as a PEFT adapter, which on warm_start/ computes what final/ does."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
import transformers
from conftest import changed, run, tiny_tables
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file

from relora_lab import adapters, train
from relora_lab.lowrank import merged_state_dict, wrap
from relora_lab.runs import RunFolder

SHORT = {"steps": 40, "warm_start": 10, "eval_every": 1000, "norms_every": 1000}
TWICE = {"rank": 2, "restart_every": 10, "restart_warmup": 2}  # at steps 20 and 30
# Method, further settings of training, rank of the adapter.
SUMS = {
    "lora": ({"name": "lora", "rank": 2, "alpha": 6}, {}, 2),
    "lora-resets": ({"name": "lora", **TWICE, "optimizer_reset": "zero"}, {}, 2),  # its factors go on
    "lora-reference": ({"name": "lora", **TWICE}, {"reference_step": 15}, 4),
    "relora": ({"name": "relora", **TWICE, "alpha": 3}, {}, 6),
    "online": ({"name": "online_relora", **TWICE, "merge_every": 15}, {}, 8),
    "repissa": ({"name": "repissa", **TWICE, "alpha": 1}, {}, 12),  # B begins as no zero
    "reloqra": ({"name": "reloqra", **TWICE}, {}, 12),
    "from-zero": ({"name": "low_rank", "rank": 2}, {"warm_start": 0}, 4),
    "bf16": ({"name": "lora", "rank": 2}, {"precision": "bf16"}, 2),
}
NO_SUMS = {
    "full": ({"name": "full"}, {"warm_start": 0}, "full trains every weight"),
    "redora": ({"name": "redora", **TWICE}, {}, "redora scales W beside adding to it"),
    "quantised": ({"name": "lora", "rank": 2, "quantise": "int8"}, {}, "ΔW has the rounding of W to int8"),
    "paper": (
        {"name": "reloqra", **TWICE, "alpha": 0.2, "qr_mode": "paper"},
        {},
        "W jumps at every restart (method.qr_mode)",
    ),
    "early": (
        {"name": "lora", "rank": 2},
        {"reference_step": 5},
        "ΔW counts from step 5, and all weights are trained up to 10",
    ),
    "nothing": ({"name": "lora", "rank": 2}, {"reference_step": 40}, "from step 40, and no cycle ends after it"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of every kind."""
    out = tmp_path_factory.mktemp("runs")
    merged_in_bf16 = {"relora-bf16": (SUMS["relora"][0], {"precision": "bf16"}, None)}
    for name, (method, training, _) in (SUMS | NO_SUMS | merged_in_bf16).items():
        train.run(changed(tiny_tables(), method=method, training=SHORT | training), out / name)
    return out


def logits(model, **inputs):
    with torch.no_grad():
        return model.eval()(**inputs).logits.float()


def same(run_folder, adapter, cls, **inputs):
    """The largest difference of logits: the adapter on warm_start/ beside final/; and how far training moved them."""
    base, final = (cls.from_pretrained(run_folder / which) for which in ("warm_start", "final"))
    before, expected = logits(base, **inputs), logits(final, **inputs)
    found = logits(PeftModel.from_pretrained(base, adapter), **inputs)
    return float((found - expected).abs().max()), float((before - expected).abs().max())


@pytest.mark.parametrize("name", SUMS)
def test_an_adapter_on_the_warm_start_gives_the_logits_of_the_final_weights(folder, tmp_path, capsys, name):
    _, training, rank = SUMS[name]
    code, out, _ = run(capsys, "export", folder / name, "--out", tmp_path / "new" / "adapter")
    assert (code, f"an adapter of rank {rank} to {folder / name / 'warm_start'}" in out) == (0, True)
    assert sorted(path.name for path in (tmp_path / "new").rglob("*")) == [
        *("adapter", "adapter_config.json", "adapter_model.safetensors")
    ]
    words = torch.arange(64).reshape(2, 32) % 250
    error, moved = same(
        folder / name, tmp_path / "new" / "adapter", transformers.AutoModelForCausalLM, input_ids=words
    )
    assert moved > 0.05
    assert error < (0.05 if "precision" in training else 1e-5)


def test_an_adapter_of_lora_has_the_very_factors_and_stands_beside_the_run(folder, capsys, monkeypatch):
    path, adapter = folder / "lora", folder / "lora-adapter"
    written = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "peft", None)
        assert run(capsys, "export", path)[0] == 0
    assert written == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["task_type"]) == (2, 6, "CAUSAL_LM")
    stored = load_file(adapter / "adapter_model.safetensors")
    [(pairs, _)] = RunFolder(path).cycles()
    for matrix, [(B, A, _)] in pairs.items():
        assert torch.equal(stored.pop(f"base_model.model.{matrix}.lora_B.weight"), B)
        assert torch.equal(stored.pop(f"base_model.model.{matrix}.lora_A.weight"), A)
    assert {name.removeprefix("base_model.model.").removesuffix(".weight") for name in stored} == {
        *settings["modules_to_save"]
    }
    opened = AutoPeftModelForCausalLM.from_pretrained(adapter)  # which finds the base by itself
    assert opened.peft_config["default"].base_model_name_or_path == str(path / "warm_start")
    shutil.rmtree(adapter)


@pytest.mark.parametrize("name", ["lora-resets", "relora", "repissa"])
def test_an_adapter_has_the_spectrum_of_its_run(folder, tmp_path, capsys, name):
    path = folder / name
    run(capsys, "export", path, "--out", tmp_path / "adapter")
    of_run, of_adapter = (
        json.loads(run(capsys, "spectrum", *ends, "--json")[1])["matrices"]
        for ends in ([path], [path / "warm_start", tmp_path / "adapter"])
    )
    assert len(of_run) == 14
    for one, other in zip(of_run, of_adapter, strict=True):
        assert [one[key] for key in ("matrix", "rank")] == [other[key] for key in ("matrix", "rank")]
        np.testing.assert_allclose(one["sigma"], other["sigma"], atol=1e-6 * one["sigma"][0])


LLAMA = {"hidden_size": 16, "intermediate_size": 40, "num_attention_heads": 2, "num_hidden_layers": 2}
LLAMA |= {"vocab_size": 50, "pad_token_id": 0}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 40, "num_heads": 2, "num_layers": 2, "vocab_size": 50}
WORDS = {"input_ids": torch.arange(1, 33).reshape(2, 16)}
# Class, settings, inputs, the name of tied weights that are stored, and their others.
MODELS = {
    "classes": (transformers.LlamaForSequenceClassification, {**LLAMA, "num_labels": 3}, WORDS, None, []),
    "tied": (
        transformers.LlamaForCausalLM,
        {**LLAMA, "tie_word_embeddings": True},
        WORDS,
        "model.embed_tokens",
        ["lm_head"],
    ),
    "t5": (
        transformers.T5ForConditionalGeneration,
        T5,
        {**WORDS, "decoder_input_ids": torch.arange(10).reshape(2, 5)},
        "shared",
        ["encoder.embed_tokens", "decoder.embed_tokens", "lm_head"],
    ),
}


def finished_run(path, model, tied):
    """The folder of a run of LoRA that moved every weight of `model`; of tied weights one name is stored."""
    made = RunFolder(path)
    made.make()
    made.write_config(changed(tiny_tables(), method={"name": "lora", "rank": 2}, training={"warm_start": 0}))
    (path / ".tokenizer").mkdir()

    def write(which):
        tensors = {
            name: w.clone()
            for name, w in merged_state_dict(model).items()
            if name.removesuffix(".weight") not in tied
        }
        made.write_weights(which, model.config.to_json_string(), tensors, path / ".tokenizer")

    write("warm_start")
    layers = wrap(model, rank=2, method="lora", exclude=["score"])
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * weight.requires_grad * torch.randn_like(weight)
    write("final")
    pairs = {name: [(layer.lora_B.detach(), layer.lora_A.detach(), layer.scale)] for name, layer in layers.items()}
    made.write_cycle(1, pairs, {"cycle": 1, "start": 0, "end": 60, "factored": True, "merged": False})
    made.write_status("finished", step=60, steps=60)
    return made


@pytest.mark.parametrize("name", MODELS)
def test_heads_and_tied_weights_are_in_the_adapter_by_each_of_their_names(tmp_path, name):
    cls, settings, inputs, stored, tied = MODELS[name]
    torch.manual_seed(0)
    model = cls(cls.config_class(**settings, architectures=[cls.__name__]))
    made = finished_run(tmp_path / "run", model, tied)
    adapters.export(made, tmp_path / "adapter")
    error, moved = same(made.path, tmp_path / "adapter", cls, **inputs)
    assert moved > 0.05
    assert error < 1e-5
    found = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    kinds = {"classes": "SEQ_CLS", "tied": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM"}
    assert found["task_type"] == kinds[name]
    assert {"classes": {"score"}}.get(name, {stored, *tied}) <= set(found["modules_to_save"])


@pytest.mark.parametrize("name", NO_SUMS)
def test_a_run_that_is_no_sum_of_products_is_refused_by_name(folder, tmp_path, capsys, name):
    code, out, err = run(capsys, "export", folder / name, "--out", tmp_path / "adapter")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert f"{folder / name}: " in err
    assert f"{NO_SUMS[name][2]}, so it has no LoRA adapter; use its final/" in err
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_be_exported_and_a_place_that_is_none_are_refused(folder, tmp_path, capsys):
    unfinished = RunFolder(shutil.copytree(folder / "relora", tmp_path / "unfinished"))
    shutil.rmtree(unfinished.path / "final")
    unfinished.write_status("stopped", step=30, steps=40)
    diverged = RunFolder(shutil.copytree(folder / "relora", tmp_path / "diverged"))
    diverged.write_status("diverged", step=40, steps=40)
    damaged = shutil.copytree(folder / "relora", tmp_path / "damaged")
    (damaged / "cycles" / "0002.json").write_text("{}")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    refused = {
        (tmp_path / "full", tmp_path / "a"): f"{tmp_path / 'full'}: is no run folder",
        (unfinished.path, tmp_path / "a"): f"{unfinished.path}: run not finished (stopped at step 30 of 40)",
        (diverged.path, tmp_path / "a"): f"{diverged.path}: has diverged; only a finished run has an adapter",
        (damaged, tmp_path / "a"): "0002.json: is damaged or was changed",
        (folder / "relora-bf16", tmp_path / "a"): "its weights are bfloat16, and what merges rounded is in no factor",
        (folder / "relora", tmp_path / "full"): f"--out {tmp_path / 'full'}: is not empty; choose another folder",
        (folder / "relora", tmp_path / "full" / "file"): "is no folder to write into",
        (folder / "relora", folder / "lora" / "adapter"): f"is inside the run folder {folder / 'lora'}",
        (folder / "relora", folder / "relora"): "is a run folder; choose another one",
    }
    for (path, place), message in refused.items():
        code, out, err = run(capsys, "export", path, "--out", place)
        assert (code, out, len(err.splitlines()), message in err) == (2, "", 1, True), err
    assert sorted(tmp_path.rglob("*")) == before
