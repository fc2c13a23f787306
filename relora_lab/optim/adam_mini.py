"""Adam-mini (Zhang et al. 2024): AdamW whose second moment is one number a block of weights."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from relora_lab.errors import require
from relora_lab.lowrank import low_rank_layers
from relora_lab.optim.adamw import AdamBase, bias_corrections, compute_dtype, new_moments, update_moments

PARTITIONS = ("paper", "v1.1")

# How attention modules call their query and key projections and the width of a head: LLaMA's kind, T5.
_ATTENTION = (("q_proj", "k_proj", "head_dim"), ("q", "k", "key_value_proj_dim"))


def blocks(model: nn.Module, partition: str = "paper") -> list[dict[str, Any]]:
    """Parameter groups for AdamMini: `blocks`, the equal contiguous parts each of `params` (row-major) splits into.

    "paper" (the version P2 used): one block an entry for embeddings and output head, one a head for query and key
    weights (key: kv-heads), one for every other tensor. "v1.1": query and key as before, one block a row for every
    other matrix, one for every vector. Vectors (norms, biases) get weight_decay 0. Roles are those of modules,
    not of names: embeddings are nn.Embedding and get_input_embeddings(), the head is get_output_embeddings() (a
    model without it has no head: its last linear is a matrix like others), query and key are attributes of
    the attention modules of LLaMA's and T5's kind. A tied tensor comes once; frozen ones do not come.

    Raises ValueError for an unknown partition, low-rank factors, a model said to have attention heads in which no
    attention module is known, and heads that do not divide a projection.
    Source: Zhang et al. 2024; adam-mini 1.0.4 ("paper": what P2 used) and 1.1.
    """
    require(partition in PARTITIONS, f"partition: unknown '{partition}'; one of {', '.join(PARTITIONS)}")
    for name in low_rank_layers(model):
        raise ValueError(f"Adam-mini has no partition for low-rank factors; {name} has them")
    heads = _heads(model)
    tables = _embeddings_and_head(model)

    def count(parameter: Tensor) -> int:
        if id(parameter) in heads:
            return heads[id(parameter)]
        if partition == "paper":
            return parameter.numel() if id(parameter) in tables else 1
        return parameter.shape[0] if parameter.dim() > 1 else 1

    groups: dict[tuple[int, bool], list[Tensor]] = {}
    for parameter in model.parameters():  # each once, however often it is used
        if parameter.requires_grad:
            groups.setdefault((count(parameter), parameter.dim() > 1), []).append(parameter)
    return [
        {"params": parameters, "blocks": n} | ({} if decays else {"weight_decay": 0.0})
        for (n, decays), parameters in groups.items()
    ]


def _embeddings_and_head(model: nn.Module) -> set[int]:
    """Ids of the weights of embeddings and head; the model may be a wrapper around the one that knows them."""
    found: list[Any] = []
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            found.append(module)
        for method in ("get_input_embeddings", "get_output_embeddings"):
            with suppress(NotImplementedError):  # transformers has the methods on models without such a table
                found.append(getattr(module, method, lambda: None)())
    return {id(module.weight) for module in found if module is not None}


def _heads(model: nn.Module) -> dict[int, int]:
    """Number of heads by the id of each query and key weight."""
    found: dict[int, int] = {}
    for name, module in model.named_modules():
        for query_name, key_name, width_name in _ATTENTION:
            query, key = getattr(module, query_name, None), getattr(module, key_name, None)
            if not (isinstance(query, nn.Linear) and isinstance(key, nn.Linear)):
                continue
            width = _head_width(name, module, query, width_name)
            for layer, projection in ((query_name, query), (key_name, key)):
                rows = projection.out_features
                require(rows % width == 0, f"{name}.{layer}: {rows} rows are no whole number of heads of {width}")
                found[id(projection.weight)] = rows // width
    said = getattr(getattr(model, "config", None), "num_attention_heads", None)
    require(bool(found) or not said, f"Adam-mini knows no attention module in a model of {said} heads a layer")
    return found


def _head_width(name: str, attention: nn.Module, query: nn.Linear, attribute: str) -> int:
    """Rows a head, of query and key alike (with grouped queries there are fewer keys, not narrower ones)."""
    config = getattr(attention, "config", None)
    width = getattr(attention, attribute, None) or getattr(config, "head_dim", None)
    if width is None:
        heads: Any = getattr(config, "num_attention_heads", None) or getattr(attention, "num_heads", None)
        require(bool(heads), f"{name}: an attention module that says neither its heads nor their width")
        width = query.out_features // heads
    return int(width)


class AdamMini(AdamBase):
    """AdamW with v ← β2·v + (1 − β2)·mean(g²) over each block; `blocks` are the groups of `blocks(model)`.

    State: step (int), exp_avg (the parameter's shape), exp_avg_sq (one number a block), both in `state_dtype`
    (None: the parameter's dtype); updates are in float32 or wider. Raises ValueError naming a hyper-parameter that
    cannot be used, or a parameter that its group's `blocks` does not divide.
    """

    def __init__(
        self,
        blocks: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(blocks, lr, betas, eps, weight_decay, state_dtype)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        n = group.get("blocks")
        require(isinstance(n, int) and n >= 1, f"blocks: must be ≥ 1 in every group, as blocks(model) says (got {n})")
        for shape in (tuple(p.shape) for p in group["params"] if p.numel() % n):
            raise ValueError(f"blocks: a parameter of shape {shape} does not split into {n} equal parts")

    def _update(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        n, shape = group["blocks"], parameter.shape
        if "step" not in state:
            state.update(step=0, **new_moments(shape, torch.Size([n]), parameter, group["state_dtype"]))
        gradient = parameter.grad.to(compute_dtype(parameter))
        m, v = update_moments(state, gradient, group["betas"], square=gradient.square().reshape(n, -1).mean(1))
        state["step"] += 1
        step_size, root = bias_corrections(state["step"], group)
        weight = parameter.to(gradient.dtype)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        denominator = (v.sqrt() / root).add_(group["eps"])
        direction = (m.reshape(n, -1) / denominator[:, None]).reshape(shape)
        weight.add_(direction, alpha=-step_size)
        parameter.copy_(weight)
