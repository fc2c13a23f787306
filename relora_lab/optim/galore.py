"""GaLore (Zhao et al. 2024) as P2 runs it: Adam in a low-rank subspace of the gradient, drawn anew now and then.

Four pieces, in this order: when the projector is refreshed, the projector, the residual (error feedback) and Adam
in the subspace. `GaLore._update` puts them together.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from relora_lab.errors import one_line, require
from relora_lab.optim.adamw import AdamBase, adamw_, bias_corrections, compute_dtype, new_moments, update_moments

SIDES = ("std", "reverse_std", "left", "right")
SIGNS = ("canonical", "lapack")


class ProjectionError(RuntimeError):
    """No projector can be made of a gradient. One line: the parameter's shape, the step, what is wrong."""


# --- When: a refresh is due `gap` steps after the last one; with dynamics each one may widen the gap.


def refresh_due(t: int, last: int | None, gap: int) -> bool:
    return last is None or t - last >= gap


def gap_after(t: int, gap: int, *, dynamic: bool, dynamic_from: int, dynamic_max: int) -> int:
    """The gap that follows a refresh at step t."""
    return min(gap + gap // 2, dynamic_max) if dynamic and t >= dynamic_from else gap


def refresh_schedule(
    gap: int, total_steps: int, *, dynamic: bool = False, dynamic_from: int = 200, dynamic_max: int = 2500
) -> list[int]:
    """The 0-based steps of `total_steps` at which GaLore refreshes a projector (P2 §4.2).

    Raises ValueError as GaLore does for the same settings.
    """
    rule: dict[str, Any] = {"dynamic": dynamic, "dynamic_from": dynamic_from, "dynamic_max": dynamic_max}
    _check_rule({"gap": gap, **rule})
    found: list[int] = []
    for t in range(total_steps):
        if refresh_due(t, found[-1] if found else None, gap):
            found.append(t)
            gap = gap_after(t, gap, **rule)
    return found


def _check_rule(group: dict[str, Any]) -> None:
    gap, dynamic_from, dynamic_max = group["gap"], group["dynamic_from"], group["dynamic_max"]
    require(isinstance(gap, int) and gap >= 1, f"gap: must be a whole number ≥ 1 (got {gap})")
    if group["dynamic"]:
        require(dynamic_from >= 0, f"dynamic_from: must be ≥ 0 (got {dynamic_from})")
        require(dynamic_max >= gap, f"dynamic_max: must be ≥ gap, {gap} (got {dynamic_max})")


# --- The projector: (r, in) on the right of a gradient, (out, r) on its left.


def is_right(side: str, shape: torch.Size) -> bool:
    tall = shape[0] >= shape[1]
    return {"right": True, "left": False, "std": tall, "reverse_std": not tall}[side]


def top_singular_vectors(gradient: Tensor, rank: int, right: bool, sign: str) -> Tensor:
    """The projector of a gradient. Raises ValueError with what is wrong if it has none."""
    bad = int((~gradient.isfinite()).sum())
    if bad:
        raise ValueError(f"{bad} of {gradient.numel()} gradient entries are not finite")
    try:
        U, _, Vh = torch.linalg.svd(gradient, full_matrices=False)
    except torch.linalg.LinAlgError as error:
        raise ValueError(f"the SVD of the gradient failed ({one_line(error)})") from error
    vectors = Vh[:rank] if right else U[:, :rank].T  # one a row
    if not vectors.isfinite().all():
        raise ValueError("the SVD of the gradient is not finite")
    if sign == "canonical":
        largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
        vectors = vectors * largest.sign()
    return (vectors if right else vectors.T).clone(memory_format=torch.contiguous_format)


def project(gradient: Tensor, projector: Tensor, right: bool) -> Tensor:
    return gradient @ projector.T if right else projector.T @ gradient


def back(inside: Tensor, projector: Tensor, right: bool) -> Tensor:
    return inside @ projector if right else projector @ inside


# --- The optimizer, with the residual and the inner Adam.


class GaLore(AdamBase):
    """Adam in a rank-r subspace of each gradient; AdamW for the parameters of groups with `rank=None`.

    Groups with a rank hold matrices (out, in) only. Every `gap` steps (growing if `dynamic`) the subspace becomes
    that of the top singular vectors of the gradient; moments are neither reset nor rotated. `side` says which
    ones: "std" the right ones if out ≥ in, else the left; "reverse_std" the opposite; "left"; "right". `scale` is
    on the update only, `eps` before bias correction, decay after the update. `error_feedback` w adds w·S to the
    gradient, S being what the projection last left out. `sign="lapack"` leaves the vectors' signs as the SVD gives.

    State of a matrix: step, last_refresh, gap (ints), projector (float32 or wider; (r, in) or (out, r)), exp_avg
    and exp_avg_sq ((out, r) or (r, in)), residual (out, in; only with error feedback), the last three in
    `state_dtype` (None: the parameter's); `injected` while a projector waits for the next refresh.
    A refresh at a gradient of zeros keeps the projector and stays due; without one yet, the parameter is left as
    it is. `status` counts both. Raises ValueError for a rank, matrix or setting that cannot be used,
    ProjectionError from step() before anything of the parameter is changed.
    Source: Zhao et al. 2024 (galore-torch 1.0); P2 §4.2.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        rank: int | None,
        gap: int = 200,
        scale: float = 0.25,
        side: Literal["std", "reverse_std", "left", "right"] = "std",
        error_feedback: float = 0.0,
        dynamic: bool = False,
        dynamic_from: int = 200,
        dynamic_max: int = 2500,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        sign: Literal["canonical", "lapack"] = "canonical",
        state_dtype: torch.dtype | None = None,
    ) -> None:
        rule = {"gap": gap, "dynamic": dynamic, "dynamic_from": dynamic_from, "dynamic_max": dynamic_max}
        subspace = {"rank": rank, "side": side, "sign": sign, "scale": scale, "error_feedback": error_feedback}
        # Counts live in the groups because those are saved.
        counts = {"refreshes": 0, "skipped_zero": 0}
        super().__init__(params, lr, betas, eps, weight_decay, state_dtype, **rule, **subspace, **counts)

    @property
    def status(self) -> dict[str, int]:
        """Refreshes over all parameters so far: `refreshes` made, `skipped_zero` put off for a gradient of zeros."""
        return {key: sum(group[key] for group in self.param_groups) for key in ("refreshes", "skipped_zero")}

    @torch.no_grad()
    def inject_projector(self, param: Tensor, projector: Tensor) -> None:
        """The next refresh of `param` takes this (right: (r, in); left: (out, r)) in place of an SVD; the last wins.

        Raises ValueError for a parameter that has no projector, or another shape.
        """
        group = next((g for g in self.param_groups for p in g["params"] if p is param), None)
        if group is None or group["rank"] is None:
            raise ValueError(f"param: a tensor of shape {tuple(param.shape)} that is in no group with a rank")
        out, in_ = param.shape
        right = is_right(group["side"], param.shape)
        shape = (group["rank"], in_) if right else (out, group["rank"])
        if projector.shape != shape:
            name, got = "right" if right else "left", tuple(projector.shape)
            raise ValueError(f"projector: the {name} one of a ({out}, {in_}) matrix is {shape} (got {got})")
        self.state[param]["injected"] = projector.to(param.device, compute_dtype(param), copy=True)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        _check_rule(group)
        require(group["side"] in SIDES, f"side: must be one of {', '.join(SIDES)} (got {group['side']!r})")
        require(group["sign"] in SIGNS, f"sign: must be one of {', '.join(SIGNS)} (got {group['sign']!r})")
        require(0 < group["scale"] < float("inf"), f"scale: must be > 0 (got {group['scale']})")
        feedback, rank = group["error_feedback"], group["rank"]
        require(0 <= feedback < float("inf"), f"error_feedback: must be ≥ 0 (got {feedback})")
        if rank is None:
            return
        require(isinstance(rank, int) and rank >= 1, f"rank: must be a whole number ≥ 1 (got {rank})")
        for shape in (tuple(p.shape) for p in group["params"]):
            require(
                len(shape) == 2, f"params: GaLore takes matrices; one of shape {shape} needs a group with rank=None"
            )
            require(rank <= min(shape), f"rank: {rank} does not fit a matrix of shape {shape}")

    def _update(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if group["rank"] is None:
            adamw_(parameter, state, group)
            return
        assert parameter.grad is not None
        right = is_right(group["side"], parameter.shape)
        gradient = parameter.grad.to(compute_dtype(parameter))
        if "residual" in state:
            gradient = gradient.add(state["residual"].to(gradient.dtype), alpha=group["error_feedback"])
        if not self._refresh(parameter, gradient, state, group):
            return
        projector = state["projector"]
        inside = project(gradient, projector, right)
        if group["error_feedback"]:
            left_out = gradient - back(inside, projector, right)
            state["residual"] = left_out.to(state["exp_avg"].dtype)

        m, v = update_moments(state, inside, group["betas"])
        state["step"] += 1
        step_size, root = bias_corrections(state["step"], group)
        weight = parameter.to(gradient.dtype)
        direction = (m / v.sqrt().add_(group["eps"])).to(gradient.dtype)
        weight.add_(back(direction, projector, right), alpha=-step_size * root * group["scale"])
        weight.sub_(weight, alpha=group["lr"] * group["weight_decay"])
        parameter.copy_(weight)

    def _refresh(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> bool:
        """Make a projector if one is due. False: there is none to go on with."""
        t, gap = state.get("step", 0), state.get("gap", group["gap"])
        if not refresh_due(t, state.get("last_refresh"), gap):
            return True
        right = is_right(group["side"], parameter.shape)
        if "injected" in state:
            projector = state.pop("injected")
        elif not gradient.any():
            group["skipped_zero"] += 1
            return "projector" in state
        else:
            try:
                projector = top_singular_vectors(gradient, group["rank"], right, group["sign"])
            except ValueError as error:
                shape = tuple(parameter.shape)
                raise ProjectionError(f"no projector for a matrix of shape {shape} at step {t}: {error}") from error
        if "step" not in state:
            inside = project(gradient, projector, right).shape
            state.update(step=0, **new_moments(inside, inside, parameter, group["state_dtype"]))
        rule = {key: group[key] for key in ("dynamic", "dynamic_from", "dynamic_max")}
        state.update(projector=projector, last_refresh=t, gap=gap_after(t, gap, **rule))
        group["refreshes"] += 1
        return True
