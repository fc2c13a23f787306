"""A model's tensors, each once: T5's head is its embeddings, which its state dict has under four names."""

from collections.abc import Mapping

from torch import Tensor, nn


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict with each tensor once: of tied ones under the first of their names."""
    return {name: tensor.detach() for name, (tensor, first) in _tensors(model).items() if first == name}


def load_own_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the model what `own_tensors` has taken. Raises RuntimeError for other names or shapes."""
    tied = {name: tensors[first] for name, (_, first) in _tensors(model).items() if first in tensors}
    model.load_state_dict({**tensors, **tied})


def _tensors(model: nn.Module) -> dict[str, tuple[Tensor, str]]:
    """The model's state dict, and the first of the names that each tensor has."""
    every = model.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(every.items())}
    return {name: (tensor, first[id(tensor)]) for name, tensor in every.items()}
