"""Forty updates of the public code, update for update, with the parts one would use in one's own loop."""

import numpy as np
import pytest
import torch
from conftest import GOLDEN, golden
from safetensors.torch import load_file
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaConfig

from relora_lab import models
from relora_lab.lowrank import merged_state_dict, wrap
from relora_lab.restart import restart
from relora_lab.schedule import lr_multiplier

EXPECTED = golden("trajectories")
META = EXPECTED["meta"]


def load(model: torch.nn.Module, inputs: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    weights = {k.removeprefix(prefix): v for k, v in inputs.items() if k.startswith(prefix)}
    model.load_state_dict(weights)
    return weights


@pytest.mark.parametrize("name", ["full_rank", "relora_paperorder_zero"])
def test_forty_updates_equal_the_public_code(name):
    expected, inputs = EXPECTED["runs"][name], load_file(GOLDEN / "traj_inputs.safetensors")
    shape, optim, schedule = META["model"], META["optim"], META["schedule"]
    model = models.build(
        LlamaConfig(
            hidden_size=shape["hidden"],
            intermediate_size=shape["intermediate"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            vocab_size=shape["vocab"],
            rms_norm_eps=shape["rms_eps"],
            tie_word_embeddings=False,
        )
    )
    warm = load(model, inputs, "warm.")
    layers = {}
    if name != "full_rank":
        layers = wrap(model, META["lora"]["r"], META["lora"]["alpha"])
        for path, layer in layers.items():
            layer.lora_A.data.copy_(inputs[f"lora_A0.{path}"])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=optim["betas"], eps=optim["eps"], weight_decay=0.0, fused=True)
    every = schedule["cycle_length"] if layers else None
    for update in range(1, 41):
        multiplier = lr_multiplier(
            update - 1,
            total_steps=schedule["num_training_steps"],
            warmup_steps=schedule["warmup_steps"],
            min_ratio=schedule["min_lr_ratio"],
            restart_every=every,
            restart_warmup=schedule["restart_warmup_steps"],
        )
        optimizer.param_groups[0]["lr"] = optim["lr"] * multiplier
        batch = inputs["batches"][update - 1]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        norm = clip_grad_norm_(trained, optim["clip_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
        assert loss.item() == pytest.approx(expected["loss"][update - 1], abs=1e-5), update
        assert norm.item() == pytest.approx(expected["grad_norm_preclip"][update - 1], rel=1e-4), update
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected["lr"][update - 1], abs=1e-12)
        if update == every:
            report = restart(layers, optimizer, cycle=1, reset="zero")
            assert report.zeroed == report.entries
            for path, layer in layers.items():
                layer.lora_A.data.copy_(inputs[f"lora_A1.{path}"])
        if str(update) in expected["eval_loss"]:
            with torch.no_grad():
                found = model(input_ids=inputs["eval_batch"], labels=inputs["eval_batch"]).loss
            assert float(found) == pytest.approx(expected["eval_loss"][str(update)], abs=1e-5), update
    merged = merged_state_dict(model)
    for matrix, sigma in expected["dW_singular_values"].items():
        ours = torch.linalg.svdvals((merged[matrix] - warm[matrix]).double()).numpy()
        np.testing.assert_allclose(ours, sigma, atol=2e-4)
        # Rounding leaves about 1e-7 where the exact value is 0.
        rank = 2 * META["lora"]["r"] if layers else len(sigma)
        assert (ours > 1e-5).sum() == (np.array(sigma) > 1e-5).sum() == rank
