"""The learning-rate multiplier: the public code's numbers, and what the jagged cosine promises."""

import math

import pytest
from conftest import golden
from hypothesis import assume, given
from hypothesis import strategies as st

from relora_lab.schedule import lr_multiplier

CASES = golden("lr_multipliers")["cases"]


@pytest.mark.parametrize("case", CASES)
def test_equals_the_public_code_at_every_step_of_training(case):
    settings, expected = CASES[case]["settings"], CASES[case]["multipliers"]
    total = settings["num_training_steps"]
    for step in range(total + 1):
        ours = lr_multiplier(
            step,
            total_steps=total,
            warmup_steps=settings["warmup_steps"],
            min_ratio=settings["min_lr_ratio"],
            restart_every=settings["cycle_length"],
            restart_warmup=settings["restart_warmup_steps"],
        )
        assert ours == pytest.approx(expected[step], abs=1e-12)


@given(
    total=st.integers(2, 500),
    warmup=st.integers(0, 50),
    every=st.integers(1, 200),
    restart_warmup=st.integers(0, 50),
    min_ratio=st.floats(0, 1),
)
def test_jagged_falls_to_zero_at_restarts_and_meets_the_cosine(total, warmup, every, restart_warmup, min_ratio):
    assume(warmup < total and warmup <= every and restart_warmup < every)
    smooth = {"total_steps": total, "warmup_steps": warmup, "min_ratio": min_ratio}
    jagged = {**smooth, "restart_every": every, "restart_warmup": restart_warmup}
    for step in range(total):
        value = lr_multiplier(step, **jagged)
        since = step % every
        assert 0 <= value <= 1 + 1e-12
        if step < every or since >= restart_warmup:
            assert value == lr_multiplier(step, **smooth)
        elif since == 0:
            assert value == 0
        else:  # a straight line from 0 to where the cosine will be
            meeting = lr_multiplier(step - since + restart_warmup, **smooth)
            assert value == pytest.approx(meeting * since / restart_warmup)


def test_cosine_starts_at_zero_peaks_after_warmup_and_stays_at_its_minimum():
    shape = {"total_steps": 100, "warmup_steps": 10, "min_ratio": 0.1}
    assert lr_multiplier(0, **shape) == 0
    assert lr_multiplier(10, **shape) == 1
    assert lr_multiplier(55, **shape) == pytest.approx(0.55)
    assert lr_multiplier(100, **shape) == lr_multiplier(1000, **shape) == pytest.approx(0.1)
    assert math.isclose(lr_multiplier(0, total_steps=100), 1)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"warmup_steps": 100}, "warmup_steps"),
        ({"restart_every": 0}, "restart_every"),
        ({"restart_every": 5, "warmup_steps": 6}, "warmup_steps"),
        ({"restart_every": 50, "restart_warmup": 50}, "restart_warmup"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, field):
    with pytest.raises(ValueError, match=field):
        lr_multiplier(0, total_steps=100, **settings)
