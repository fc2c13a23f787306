"""AdamW with moments stored in a dtype of choice, and what every Adam of this package is made of."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, StateDict

from relora_lab.errors import require


def compute_dtype(parameter: Tensor) -> torch.dtype:
    """What a parameter is updated in: float32, or its own dtype if that is wider."""
    return torch.promote_types(parameter.dtype, torch.float32)


def new_moments(shape: torch.Size, sq_shape: torch.Size, parameter: Tensor, dtype: str | None) -> dict[str, Tensor]:
    """exp_avg and exp_avg_sq, zero, on the parameter's device in the named dtype (None: the parameter's)."""
    stored = parameter.dtype if dtype is None else getattr(torch, dtype)
    return {
        "exp_avg": torch.zeros(shape, dtype=stored, device=parameter.device),
        "exp_avg_sq": torch.zeros(sq_shape, dtype=stored, device=parameter.device),
    }


def update_moments(
    state: dict[str, Any], gradient: Tensor, betas: tuple[float, float], square: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Take in a gradient; the stored moments are rounded, those returned are not. Only read what is returned.

    `square` stands in for gradient² where the second moment is not one number an entry.
    """
    wide = torch.promote_types(gradient.dtype, state["exp_avg"].dtype)
    # Where nothing is wider than what is stored, .to() copies nothing and these are the stored tensors.
    m, v = state["exp_avg"].to(wide), state["exp_avg_sq"].to(wide)
    m.lerp_(gradient.to(wide), 1 - betas[0])
    v.mul_(betas[1])
    if square is None:
        v.addcmul_(gradient, gradient, value=1 - betas[1])
    else:
        v.add_(square, alpha=1 - betas[1])
    state["exp_avg"].copy_(m)
    state["exp_avg_sq"].copy_(v)
    return m, v


def adamw_(parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """One step of AdamW in place, in torch's order of operations (equal to its bits where nothing is rounded)."""
    assert parameter.grad is not None
    if "step" not in state:
        shape = parameter.shape
        state.update(step=0, **new_moments(shape, shape, parameter, group["state_dtype"]))
    gradient = parameter.grad.to(compute_dtype(parameter))
    m, v = update_moments(state, gradient, group["betas"])
    state["step"] += 1
    step_size, root = bias_corrections(state["step"], group)
    weight = parameter.to(gradient.dtype)
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    weight.addcdiv_(m, (v.sqrt() / root).add_(group["eps"]), value=-step_size)
    parameter.copy_(weight)


def bias_corrections(step: int, group: dict[str, Any]) -> tuple[float, float]:
    """lr / (1 − β1^step) and √(1 − β2^step), for the 1-based number of this step."""
    beta1, beta2 = group["betas"]
    return group["lr"] / (1 - beta1**step), (1 - beta2**step) ** 0.5


class AdamBase(Optimizer):
    """Checked hyper-parameters, a loop over parameters that have a gradient, and state that loads to the bit.

    `others` are defaults of groups that one optimizer has beside Adam's.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        state_dtype: torch.dtype | None = None,
        **others: Any,
    ) -> None:
        adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "state_dtype": state_dtype}
        super().__init__(params, adam | others)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch, but a group that cannot be used is an error (ValueError naming the field), and not kept."""
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def _check(self, group: dict[str, Any]) -> None:
        for field in ("lr", "eps", "weight_decay"):
            require(0 <= group[field] < float("inf"), f"{field}: must be ≥ 0 (got {group[field]})")
        betas = group["betas"]
        require(len(betas) == 2 and all(0 <= b < 1 for b in betas), f"betas: must be two in [0, 1) (got {betas})")
        dtype = group["state_dtype"]
        if isinstance(dtype, torch.dtype):
            require(dtype.is_floating_point, f"state_dtype: must be a floating-point dtype (got {dtype})")
            group["state_dtype"] = str(dtype).removeprefix("torch.")  # a group is saved, and holds plain values

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; the others and their state stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, self.state[parameter], group)
        return loss

    def _update(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        raise NotImplementedError

    @torch.no_grad()
    def load_state_dict(self, state_dict: StateDict) -> None:
        """As torch, but every state tensor keeps its dtype (torch casts it to the weights'), and is a copy."""
        super().load_state_dict(state_dict)
        ids = [index for group in state_dict["param_groups"] for index in group["params"]]
        held = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, parameter in zip(ids, held, strict=True):
            for key, value in state_dict["state"].get(index, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][key] = value.to(parameter.device, copy=True)


class AdamW(AdamBase):
    """torch's AdamW (decoupled decay before the update, bias correction) with moments kept in `state_dtype`.

    Each step widens a parameter and its moments to float32 (or wider), updates, and rounds back; `state_dtype`
    None is the parameter's dtype. State: step (int), exp_avg, exp_avg_sq (both of the parameter's shape).
    Raises ValueError naming a hyper-parameter that cannot be used. In bfloat16 with β2 = 0.999 the second
    moment never decays (x·0.999 rounds to x): that is what P2 ran. Source: Loshchilov and Hutter 2019.
    """

    def _update(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        adamw_(parameter, state, group)
