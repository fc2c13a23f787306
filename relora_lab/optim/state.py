"""An optimizer's state as named tensors and numbers, and back: what a checkpoint holds."""

from collections.abc import Mapping

from torch import Tensor
from torch.optim import Optimizer

Numbers = dict[str, int | float]


def flatten(optimizer: Optimizer, names: Mapping[Tensor, str]) -> tuple[dict[str, Tensor], Numbers]:
    """What the state holds as "<parameter>.<key>". Raises TypeError for state that is neither tensor nor number."""
    tensors: dict[str, Tensor] = {}
    numbers: Numbers = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{names[parameter]}.{key}"] = value
            elif isinstance(value, int | float):
                numbers[f"{names[parameter]}.{key}"] = value
            else:
                raise TypeError(f"optimizer state '{key}' of {names[parameter]} is {type(value).__name__}, no tensor")
    return tensors, numbers


def restore(
    optimizer: Optimizer, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor], numbers: Numbers
) -> None:
    """Put what `flatten` gave back, bit for bit (load_state_dict would cast tensors to the weights' dtype)."""
    parameters = {name: parameter for parameter, name in names.items()}
    for path, value in {**tensors, **numbers}.items():
        name, key = path.rsplit(".", 1)
        parameter = parameters[name]
        # Adam's step counter stays on the CPU, wherever the weights are, unless the optimizer is fused.
        if isinstance(value, Tensor) and (value.dim() > 0 or optimizer.defaults.get("fused")):
            value = value.to(parameter.device)
        optimizer.state[parameter][key] = value
