"""An optimizer's state as named tensors, and back: what a checkpoint holds."""

from collections.abc import Mapping

from torch import Tensor
from torch.optim import Optimizer


def flatten(optimizer: Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """State tensors as "<parameter>/<key>". Raises TypeError for state that is no tensor."""
    found = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if not isinstance(value, Tensor):
                raise TypeError(f"optimizer state '{key}' of {names[parameter]} is {type(value).__name__}, no tensor")
            found[f"{names[parameter]}/{key}"] = value
    return found


def restore(optimizer: Optimizer, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors of `flatten` back, bit for bit (load_state_dict would cast them to the weights' dtype)."""
    parameters = {name: parameter for parameter, name in names.items()}
    for path, tensor in tensors.items():
        name, key = path.rsplit("/", 1)
        parameter = parameters[name]
        # Adam's step counter stays on the CPU, wherever the weights are, unless the optimizer is fused.
        moves = tensor.dim() > 0 or optimizer.defaults.get("fused")
        optimizer.state[parameter][key] = tensor.to(parameter.device) if moves else tensor
