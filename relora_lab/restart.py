"""A restart: merge, make new factors, reset the optimizer. The learning rate's part is in schedule.py."""

from collections.abc import Mapping
from typing import Literal

from torch import nn
from torch.optim import Optimizer

from relora_lab import seeds
from relora_lab.faults import point
from relora_lab.lowrank import LowRankLinear
from relora_lab.optim.reset import ResetReport, reset_state


def restart(
    layers: Mapping[str, LowRankLinear],
    optimizer: Optimizer,
    *,
    cycle: int,
    seed: int = 0,
    merge: bool = True,
    reset: Literal["none", "zero", "magnitude", "random"] = "magnitude",
    ratio: float = 0.99,
    mask: Literal["shared", "separate"] = "shared",
    reset_params: Literal["AB", "A"] = "AB",
) -> ResetReport:
    """Begin cycle `cycle` (the first restart begins cycle 1): P1 Algorithm 1, lines 13 to 19.

    New factors are a function of (seed, cycle, module name, and of W where the method makes them out of it).
    Without `merge` the factors go on and only the optimizer is reset. Returns the reset's report.
    """
    if merge:
        for name, layer in layers.items():
            for parameter, turned in layer.restart(seeds.generator(seed, "factors", cycle, name)).items():
                if "exp_avg" in optimizer.state[parameter]:
                    optimizer.state[parameter]["exp_avg"][turned] *= -1
    point(f"merged {cycle}")
    parameters: list[nn.Parameter] = []
    for layer in layers.values():
        parameters += [layer.lora_A, layer.lora_B] if reset_params == "AB" else [layer.lora_A]
    generator = seeds.generator(seed, "reset", cycle)
    return reset_state(optimizer, parameters, mode=reset, ratio=ratio, mask=mask, generator=generator)
