"""Learning-rate multipliers as pure functions of the step: cosine, and ReLoRA's jagged cosine (P1 Figure 2)."""

import math


def lr_multiplier(
    step: int,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    min_ratio: float = 0.1,
    restart_every: int | None = None,
    restart_warmup: int = 0,
) -> float:
    """The multiplier of the peak learning rate after `step` updates: update u (1-based) uses step u - 1.

    Linear warm-up over `warmup_steps`, then a cosine down to `min_ratio` at `total_steps`, held there after.
    With `restart_every`, the rate falls to 0 at each of its multiples and climbs back in a straight line to
    meet the cosine `restart_warmup` updates later. Raises ValueError for settings that leave no such curve.
    """
    check(total_steps, warmup_steps, restart_every, restart_warmup)

    def envelope(t: int) -> float:
        if t < warmup_steps:
            return t / warmup_steps
        progress = (min(t, total_steps) - warmup_steps) / (total_steps - warmup_steps)
        return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))

    if restart_every is not None and step >= restart_every:
        since = step % restart_every
        if since < restart_warmup:
            return since / restart_warmup * envelope(step - since + restart_warmup)
    return envelope(step)


def check(total_steps: int, warmup_steps: int, restart_every: int | None, restart_warmup: int) -> None:
    """Raise ValueError, naming the field, if no schedule can have these settings."""
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"warmup_steps ({warmup_steps}) must be shorter than the phase ({total_steps} steps)")
    if restart_every is None:
        return
    if restart_every < 1:
        raise ValueError(f"restart_every must be ≥ 1 (got {restart_every})")
    if warmup_steps > restart_every:
        raise ValueError(f"warmup_steps ({warmup_steps}) must be ≤ restart_every ({restart_every})")
    if not 0 <= restart_warmup < restart_every:
        raise ValueError(
            f"restart_warmup ({restart_warmup}) leaves no step at full rate in a cycle of {restart_every}"
        )
