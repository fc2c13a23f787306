"""The optimizer reset: the public code's numbers, and what each mode and mask leave."""

import pytest
import torch
from conftest import golden
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from relora_lab.optim.reset import reset_state

GOLDEN = golden("optimizer_reset")


def optimizer_with(moments: dict[str, dict[str, torch.Tensor]]) -> tuple[torch.optim.Optimizer, dict]:
    """An AdamW whose state is `moments`."""
    parameters = {name: nn.Parameter(torch.zeros_like(m["exp_avg"])) for name, m in moments.items()}
    optimizer = torch.optim.AdamW(parameters.values())
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {key: value.clone() for key, value in moments[name].items()}
    return optimizer, parameters


def random_state(n: int, seed: int = 0) -> tuple[torch.optim.Optimizer, nn.Parameter]:
    random = torch.Generator().manual_seed(seed)
    m, v = torch.randn(n, generator=random), torch.rand(n, generator=random) + 1e-6
    optimizer, parameters = optimizer_with({"p": {"step": torch.tensor(5.0), "exp_avg": m, "exp_avg_sq": v}})
    return optimizer, parameters["p"]


@pytest.mark.parametrize("mode", ["magnitude_0.9", "zero_exact"])
def test_equals_the_public_code(mode):
    before = {
        name: {key: torch.tensor(value) for key, value in state.items()} for name, state in GOLDEN["before"].items()
    }
    optimizer, parameters = optimizer_with(before)
    reset = [parameter for name, parameter in parameters.items() if name != "not_reset"]
    how = {"mode": "zero"} if mode == "zero_exact" else {"ratio": 0.9, "mask": "separate"}
    report = reset_state(optimizer, reset, **how)
    after = GOLDEN["outs"][mode]["after"]
    for name, parameter in parameters.items():
        for key, value in after[name].items():
            assert torch.equal(optimizer.state[parameter][key], torch.tensor(value)), (name, key)
    moments = [after[n][k] for n in after if n != "not_reset" for k in ("exp_avg", "exp_avg_sq")]
    assert report.entries == sum(torch.tensor(m).numel() for m in moments)
    assert report.zeroed == sum(int((torch.tensor(m) == 0).sum()) for m in moments)


@given(n=st.integers(1, 300), ratio=st.floats(0, 0.999), seed=st.integers(0, 99))
def test_magnitude_keeps_what_the_quantile_rule_keeps(n, ratio, seed):
    ratio = round(ratio, 3)
    optimizer, parameter = random_state(n, seed)
    magnitude = optimizer.state[parameter]["exp_avg"].abs().double()
    # The rank is exact in thousandths; torch.quantile would round it.
    kept = magnitude > magnitude.sort().values[round(ratio * 1000) * (n - 1) // 1000]
    report = reset_state(optimizer, [parameter], ratio=ratio)
    state = optimizer.state[parameter]
    assert torch.equal(state["exp_avg"] != 0, kept)
    assert torch.equal(state["exp_avg_sq"] != 0, kept)
    assert report.orphans == 0
    assert report.zeroed == 2 * (n - int(kept.sum()))
    assert state["step"] == 5


def test_separate_masks_leave_orphans_and_a_shared_one_does_not():
    orphans = {}
    for mask in ("separate", "shared"):
        optimizer, parameter = random_state(5000)
        orphans[mask] = reset_state(optimizer, [parameter], ratio=0.99, mask=mask).orphans
    assert orphans["shared"] == 0
    assert 40 <= orphans["separate"] <= 50  # of 50 survivors: independent moments agree on one in a hundred


def test_works_beyond_the_largest_tensor_that_torch_quantile_takes():
    optimizer, parameter = random_state(2**24 + 2)
    report = reset_state(optimizer, [parameter], ratio=0.99)
    assert report.zeroed / report.entries == pytest.approx(0.99, abs=1e-6)


def test_random_zeroes_about_the_ratio_with_one_mask_and_is_repeatable():
    results = []
    for _ in range(2):
        optimizer, parameter = random_state(10_000)
        report = reset_state(
            optimizer, [parameter], mode="random", ratio=0.9, generator=torch.Generator().manual_seed(3)
        )
        results.append(optimizer.state[parameter]["exp_avg"])
        assert report.zeroed / report.entries == pytest.approx(0.9, abs=0.01)
        assert report.orphans == 0
    assert torch.equal(*results)


def test_equal_magnitudes_are_emptied_and_that_is_recorded():
    ones = torch.ones(10)
    optimizer, parameters = optimizer_with({"p": {"exp_avg": ones, "exp_avg_sq": ones}})
    report = reset_state(optimizer, parameters.values(), ratio=0.5)
    assert (report.zeroed, report.emptied) == (20, 1)


def test_none_changes_nothing():
    optimizer, parameter = random_state(50)
    before = optimizer.state[parameter]["exp_avg"].clone()
    assert reset_state(optimizer, [parameter], mode="none").zeroed == 0
    assert torch.equal(optimizer.state[parameter]["exp_avg"], before)


def test_a_reset_that_zeroes_nothing_is_an_error():
    optimizer, parameter = random_state(50)
    with pytest.raises(RuntimeError, match="zeroed none of 100 entries"):
        reset_state(optimizer, [parameter], mode="random", ratio=0.0)


def test_a_parameter_that_the_optimizer_does_not_hold_is_an_error():
    optimizer, _ = random_state(5)
    with pytest.raises(ValueError, match="after wrapping"):
        reset_state(optimizer, [nn.Parameter(torch.zeros(3))])
