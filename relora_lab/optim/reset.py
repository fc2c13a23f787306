"""Optimizer reset: forget most of what Adam remembers of factors that have just been drawn anew (P1 §2, §3)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class ResetReport:
    """What a reset did, over both moments of all tensors.

    `entries` counts them and `zeroed` those that are 0 afterwards. `orphans` counts weights left with
    exp_avg ≠ 0 and exp_avg_sq = 0, whose next update is exp_avg / eps; `emptied` counts tensors pruned to
    nothing though they were not asked to be (all magnitudes equal).
    """

    entries: int = 0
    zeroed: int = 0
    orphans: int = 0
    emptied: int = 0


@torch.no_grad()
def reset_state(
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[nn.Parameter],
    *,
    mode: Literal["none", "zero", "magnitude", "random"] = "magnitude",
    ratio: float = 0.99,
    mask: Literal["shared", "separate"] = "shared",
    generator: torch.Generator | None = None,
) -> ResetReport:
    """Zero part of both Adam moments of `parameters`; the step counter and every other tensor stay.

    "magnitude" keeps entries strictly above the (⌊ratio·(n−1)⌋ + 1)-th smallest of a tensor, which is the
    public code's quantile rule at any size. "random" zeroes each entry with probability `ratio` (drawn from
    the CPU `generator`). With mask="shared" one mask from exp_avg serves both moments; "separate" prunes each by
    itself as the public code does, and leaves orphans. Raises RuntimeError if it zeroed nothing of something,
    ValueError for a parameter that the optimizer does not hold.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    entries = zeroed = orphans = emptied = non_zero_before = 0
    for parameter in parameters:
        if id(parameter) not in held:
            raise ValueError("a parameter to reset is not in the optimizer; make the optimizer after wrapping")
        moments = [optimizer.state[parameter][key] for key in MOMENTS if key in optimizer.state[parameter]]
        if not moments:
            continue  # the optimizer has not stepped yet
        before = [int(moment.count_nonzero()) for moment in moments]
        if mode != "none":
            shared = _kept(moments[0], mode, ratio, generator)
            for moment in moments:
                separate = mask == "separate" and moment is not moments[0]
                moment.masked_fill_(~(_kept(moment, mode, ratio, generator) if separate else shared), 0)
        after = [int(moment.count_nonzero()) for moment in moments]
        entries += sum(moment.numel() for moment in moments)
        zeroed += sum(moment.numel() - n for moment, n in zip(moments, after, strict=True))
        orphans += int(((moments[0] != 0) & (moments[1] == 0)).sum())
        emptied += mode == "magnitude" and sum(before) > 0 and sum(after) == 0
        non_zero_before += sum(before)
    if mode != "none" and non_zero_before and not zeroed:
        raise RuntimeError(f"the optimizer reset ({mode}, {ratio}) zeroed none of {entries} entries")
    return ResetReport(entries, zeroed, orphans, emptied)


def _kept(moment: Tensor, mode: str, ratio: float, generator: torch.Generator | None) -> Tensor:
    """The boolean mask of entries that stay."""
    if mode == "zero":
        return torch.zeros_like(moment, dtype=torch.bool)
    if mode == "random":
        return (torch.rand(moment.shape, generator=generator) >= ratio).to(moment.device)
    magnitude = moment.abs().float()
    # Fraction(str()) reads 0.29 as 29/100: in floating point 0.29 * 100 falls below 29.
    rank = math.floor(Fraction(str(ratio)) * (magnitude.numel() - 1)) + 1
    return magnitude > magnitude.flatten().kthvalue(rank).values
