"""A restart as one event: merge, new factors, reset; each part by itself too."""

import pytest
import torch
from torch import nn

from relora_lab.lowrank import wrap
from relora_lab.restart import restart


@pytest.fixture
def trained():
    """A wrapped model after three updates, with its optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8))
    layers = wrap(model, 3)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        model(torch.randn(6, 12)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, layers, optimizer


def moments(optimizer, parameters):
    return [optimizer.state[p][key].clone() for p in parameters for key in ("exp_avg", "exp_avg_sq")]


@pytest.mark.parametrize("reset_params", ["AB", "A"])
def test_only_the_named_factors_are_reset(trained, reset_params):
    model, layers, optimizer = trained
    groups = {
        "A": [layer.lora_A for layer in layers.values()],
        "B": [layer.lora_B for layer in layers.values()],
        "bias": [layer.bias for layer in layers.values()],
    }
    before = {name: moments(optimizer, group) for name, group in groups.items()}
    x = torch.randn(4, 12)
    y = model(x)
    report = restart(layers, optimizer, cycle=1, reset="zero", reset_params=reset_params)
    assert report.zeroed == report.entries > 0
    torch.testing.assert_close(model(x), y, atol=1e-5, rtol=0)
    for name, group in groups.items():
        after = moments(optimizer, group)
        if name in reset_params:
            assert not any(bool(moment.any()) for moment in after)
        else:
            assert all(torch.equal(*pair) for pair in zip(before[name], after, strict=True))
        assert all(optimizer.state[p]["step"] == 3 for p in group)


def test_new_factors_are_a_function_of_seed_cycle_and_name(trained):
    _, layers, optimizer = trained
    drawn = {}
    for seed, cycle in ((0, 1), (0, 2), (1, 1), (0, 1)):
        restart(layers, optimizer, cycle=cycle, seed=seed, reset="none")
        factor = layers["0"].lora_A.detach().clone()
        assert torch.equal(drawn.setdefault((seed, cycle), factor), factor)
    assert len({tuple(factor.flatten().tolist()) for factor in drawn.values()}) == 3


def test_without_a_merge_the_factors_go_on(trained):
    _, layers, optimizer = trained
    before = [(layer.weight.clone(), layer.lora_A.clone(), layer.lora_B.clone()) for layer in layers.values()]
    report = restart(layers, optimizer, cycle=1, merge=False, reset="magnitude", ratio=0.5)
    assert 0 < report.zeroed < report.entries
    for layer, (W, A, B) in zip(layers.values(), before, strict=True):
        assert torch.equal(layer.weight, W)
        assert torch.equal(layer.lora_A, A)
        assert torch.equal(layer.lora_B, B)
