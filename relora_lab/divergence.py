"""When a run has diverged. It is rarely NaN: the loss climbs above its start, or does not recover from a restart."""

import math
from collections import deque
from collections.abc import Container

from relora_lab.settings import Divergence

NOISE = 4  # standard errors of the difference of two means


class Monitor:
    """Watches the training loss; `restarts` are the steps after which the run restarts.

    Two rules on means over `window` updates: the mean may not exceed its first value (or `chance`, if that is
    larger) by more than `rise`; and the mean beginning `restart_warmup` updates after a restart may not exceed the
    mean before it by more than `restart_rise`, or half the way from there up to `chance`, or what the noise of
    batches explains, if that is more (near chance, as in fine-tuning, half the way is nothing).
    All it knows follows from the losses, so a resumed run feeds it the logged ones.
    """

    def __init__(
        self, rule: Divergence, chance: float, restarts: Container[int] = (), restart_warmup: int = 0
    ) -> None:
        self.rule, self.chance = rule, chance
        self.restarts, self.restart_warmup = restarts, restart_warmup
        self._last: deque[float] = deque(maxlen=rule.window)
        self._first = math.inf
        self._before: dict[int, tuple[float, float]] = {}

    def update(self, step: int, loss: float) -> str | None:
        """Take the loss of update `step` (1-based); the rule that fired, in words, or None."""
        self._last.append(loss)
        if len(self._last) < self.rule.window:
            return None
        mean = sum(self._last) / self.rule.window
        if step in self.restarts:
            deviation = math.sqrt(sum((one - mean) ** 2 for one in self._last) / self.rule.window)
            self._before[step] = mean, NOISE * deviation * math.sqrt(2 / self.rule.window)
        if math.isinf(self._first):
            self._first = mean
        start = max(self.chance, self._first)
        if mean > start + self.rule.rise:
            return f"the mean loss of {self.rule.window} updates, {mean:.2f}, is {mean - start:.2f} above the start"
        restart = step - self.rule.window - self.restart_warmup
        before, noise = self._before.pop(restart, (math.inf, 0.0))
        allowed = min(self.rule.restart_rise, max(0.0, self.chance - before) / 2)
        if mean > before + max(allowed, noise):
            return f"the mean loss rose from {before:.2f} to {mean:.2f} across the restart at step {restart}"
        return None
