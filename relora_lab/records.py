"""What a run writes down beside its loss: norms across restarts, each cycle's change, and the closing check."""

from collections.abc import Iterator
from typing import Any

import torch

from relora_lab import sizes
from relora_lab.methods._options import LowRankOptions
from relora_lab.runs import Pair, RunFolder
from relora_lab.settings import RunConfig
from relora_lab.state import TrainState

Pairs = dict[str, list[Pair]]
NORMS = ("sBA", "A", "B", "W_merged", "delta_W")


@torch.no_grad()
def norms(state: TrainState, folder: RunFolder, moment: str) -> Iterator[dict[str, Any]]:
    """A row a matrix: Frobenius norms of s·B·A, A and B (low-rank phases), merged W, and ΔW (after the reference).

    `moment` is "before" or "after" a restart, or "trace".
    """
    since_reference = state.step > state.config.training.reference
    for matrix in sizes.matrices(state.config.model.shape):
        layer = state.layers.get(matrix.name)
        row: dict[str, Any] = {
            "matrix": matrix.name,
            "step": state.step,
            "cycle": state.cycle,
            "moment": moment,
        }
        weight = f"{matrix.name}.weight"
        merged = state.model.get_parameter(weight).detach() if layer is None else layer.merged_weight()
        tensors = {} if layer is None else {"sBA": layer.update(), "A": layer.lora_A, "B": layer.lora_B}
        tensors["W_merged"] = merged
        if since_reference:
            tensors["delta_W"] = merged - folder.weight("warm_start", weight).to(merged.device)
        yield row | {name: float(tensors[name].float().norm()) if name in tensors else None for name in NORMS}


def cycle_pairs(state: TrainState) -> Pairs:
    """Signed factor pairs whose sum is the change of each merged matrix since the cycle's start."""
    pairs: Pairs = {}
    for name, (B, A) in state.factors().items():
        pairs[name] = [(B, A, state.layers[name].scale)]
        if name in state.start_factors:
            pairs[name].append((*state.start_factors[name], -state.layers[name].scale))
    return pairs


def factored(config: RunConfig) -> bool:
    """Is ΔW s(B_end·A_end − B_start·A_start), summed over cycles? Where the function jumps, the start is left."""
    method = config.low_rank
    return method is not None and _sum_of_pairs(config, method) and method.keeps_function


def adds_rank(state: TrainState, method: LowRankOptions, pairs: Pairs) -> int | None:
    """By how much the cycle can raise the rank of ΔW: 0 where the factors went on unmerged; None has no bound."""
    start, training = state.cycle_start, state.config.training
    if not _sum_of_pairs(state.config, method):
        return None
    first = start in (training.warm_start, training.reference)
    if not (first or method.merges_after(start - training.warm_start)):
        return 0
    return method.rank * max(map(len, pairs.values()))


def _sum_of_pairs(config: RunConfig, method: LowRankOptions) -> bool:
    """Is ΔW a sum of factor pairs? Not of rescaled or rounded W, nor with full-rank steps after the reference."""
    training = config.training
    return training.reference >= training.warm_start and not (method.rescales or method.quantise)


def quantisation_error(state: TrainState) -> float:
    """Of the worst matrix, ‖W as it is held − W‖ / ‖W‖; 0 where weights are not quantised."""
    return max(layer.quantisation_error for layer in state.layers.values())


def check_identity(folder: RunFolder, reference: int) -> float:
    """Check final − reference = Σ scale·B·A over the cycles since the reference, in float64.

    Returns the largest deviation, relative to the largest entry of that matrix or of a cycle's product (a merge
    rounds by the larger of the two). Raises RuntimeError, naming the matrix, where it is more than the rounding of a
    merge a cycle can explain.
    """
    cycles = folder.cycle_facts(since=reference)
    worst = 0.0
    for name in folder.factored_matrices(cycles):
        stored = folder.weight("final", f"{name}.weight")
        final, dtype = stored.double(), stored.dtype
        deviation = final - folder.weight("warm_start", f"{name}.weight").double()
        largest = float(final.abs().max() + deviation.abs().max())
        for B, A, scale in folder.pairs(name, cycles):
            product = scale * (B.double() @ A.double())
            largest = max(largest, float(product.abs().max()))  # what is added up may be larger than the sum
            deviation -= product
        relative = float(deviation.abs().max()) / largest
        # The products' rounding; and of a narrower dtype, W's at each merge and each new cycle.
        rounding = 0 if dtype == torch.float32 else (2 * len(cycles) + 1) * torch.finfo(dtype).eps / 2
        allowed = 8 * (len(cycles) + 1) * torch.finfo(torch.float32).eps + rounding
        if relative > allowed:
            raise RuntimeError(
                f"{name}: final − reference differs from the sum of the cycles' updates by {relative:.1e} of the "
                f"largest weight (rounding explains {allowed:.1e})"
            )
        worst = max(worst, relative)
    return worst
