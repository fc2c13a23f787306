"""What counts as diverged, on made-up losses."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relora_lab.divergence import Monitor
from relora_lab.settings import Divergence

CHANCE = math.log(256)


def watch(losses, *, chance=CHANCE, restarts=(), restart_warmup=0, window=20):
    """(step, reason) of the first rule that fires."""
    monitor = Monitor(Divergence(window=window), chance, set(restarts), restart_warmup)
    for step, loss in enumerate(losses, 1):
        reason = monitor.update(step, loss)
        if reason:
            return step, reason
    return None


def test_a_loss_that_falls_has_not_diverged():
    assert watch([6 - 0.01 * i for i in range(500)], restarts=[100, 200]) is None


def test_climbing_more_than_a_nat_above_chance_has():
    losses = [5.5] * 50 + [6.7] * 50
    step, reason = watch(losses)
    assert 50 < step <= 70
    assert "above the start" in reason
    assert watch([5.5] * 50 + [6.4] * 50) is None
    assert watch([9.0] * 50 + [9.9] * 50) is None  # a start above chance is what counts then


@pytest.mark.parametrize("rise", [0.9, 1.2])
def test_a_loss_that_does_not_recover_from_a_restart_has(rise):
    losses = [3.0] * 100 + [3.0 + 5] * 10 + [3.0 + rise] * 40
    found = watch(losses, restarts=[100], restart_warmup=10)
    if rise > 1:
        assert found is not None
        assert found[0] == 130  # 20 updates after the restart's warm-up
        assert "from 3.00 to 4.20 across the restart at step 100" in found[1]
    else:
        assert found is None


def test_near_chance_half_the_way_there_is_enough():
    before = math.log(256) - 0.4
    assert watch([before] * 100 + [before + 0.25] * 30, restarts=[100]) is not None
    assert watch([before] * 100 + [before + 0.15] * 30, restarts=[100]) is None


def test_noise_of_batches_near_chance_is_no_divergence_and_a_rise_beyond_it_is():
    noise = [0.69 + 0.2 * (-1) ** i for i in range(100)]  # of small batches of two classes
    for rise, diverged in ((0.2, False), (0.3, True)):
        after = [loss + rise for loss in noise[:30]]
        assert (watch(noise + after, chance=math.log(2), restarts=[100]) is not None) is diverged


@given(st.lists(st.floats(0, 12), min_size=30, max_size=120), st.integers(1, 29))
def test_a_monitor_that_is_fed_the_log_goes_on_as_if_it_had_seen_it(losses, cut):
    whole, resumed = (Monitor(Divergence(window=5), CHANCE, {20, 40}, 3) for _ in range(2))
    reasons = [whole.update(step, loss) for step, loss in enumerate(losses, 1)]
    for step, loss in enumerate(losses[:cut], 1):
        resumed.update(step, loss)
    assert [resumed.update(step, loss) for step, loss in enumerate(losses[cut:], cut + 1)] == reasons[cut:]
