"""GaLore: the public code's numbers, the definition written out once more in numpy, and what a refresh may do."""

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tensors
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from relora_lab.optim.adamw import AdamW
from relora_lab.optim.galore import GaLore, ProjectionError, refresh_schedule

# P2's settings, counted out.
P2_REFRESHES = [
    0,
    50,
    100,
    150,
    200,
    275,
    387,
    555,
    807,
    1185,
    1752,
    2602,
    3877,
    5789,
    8289,
    10789,
    13289,
    15789,
    18289,
]
DYNAMICS = {"dynamic": True, "dynamic_from": 6, "dynamic_max": 9}


def draw(shape: tuple[int, int], steps: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and gradients with a spectrum, float64. Small weights: in float32 the deviation is their rounding."""
    random = torch.Generator().manual_seed(seed)
    spectrum = torch.diag(torch.linspace(2, 0.2, shape[1])).double()
    return (
        torch.randn(shape, generator=random, dtype=torch.float64) / 4,
        torch.randn(steps, *shape, generator=random, dtype=torch.float64) @ spectrum,
    )


def trajectory(w0, grads, inject=(), **options) -> tuple[torch.Tensor, list[dict[str, Any]], GaLore]:
    """Weights after each step and the state then; `inject` are the projectors of the refreshes in order."""
    weight = nn.Parameter(w0.clone())
    optimizer = GaLore([weight], 0.01, **options)
    rule = {key: options[key] for key in DYNAMICS if key in options}
    steps = refresh_schedule(options["gap"], len(grads), **rule)
    weights, states = [], []
    for t, gradient in enumerate(grads):
        if len(inject) and t in steps:
            optimizer.inject_projector(weight, inject[steps.index(t)])
        weight.grad = gradient.clone()
        optimizer.step()
        weights.append(weight.detach().clone())
        states.append(copy.deepcopy(optimizer.state[weight]))
    return torch.stack(weights), states, optimizer


def naive(
    w0, grads, *, rank, gap, right, scale, feedback=0.0, decay=0.0, grows=None
) -> tuple[np.ndarray, list, list]:
    """The definition in numpy and float64: weights of each step, residuals, projectors."""
    W, lr, last = w0.numpy().copy(), 0.01, None
    S, m, v = np.zeros_like(W), 0.0, 0.0
    weights, residuals, projectors = [], [], []
    for t, G in enumerate(grads.numpy()):
        Gc = G + feedback * S
        if last is None or t - last >= gap:
            U, _, Vh = np.linalg.svd(Gc)
            P = Vh[:rank].T if right else U[:, :rank]  # singular vectors in columns
            P = P * np.sign([column[np.abs(column).argmax()] for column in P.T])
            projectors.append(P.T if right else P)
            last = t
            if grows and t >= grows[0]:
                gap = min(gap + int(gap / 2), grows[1])
        R = Gc @ P if right else P.T @ Gc
        S = Gc - (R @ P.T if right else P @ R)
        m, v = 0.9 * m + 0.1 * R, 0.999 * v + 0.001 * R**2
        X = m / (np.sqrt(v) + 1e-6)
        W = W - lr * np.sqrt(1 - 0.999 ** (t + 1)) / (1 - 0.9 ** (t + 1)) * scale * (X @ P.T if right else P @ X)
        W = W - lr * decay * W
        weights.append(W)
        residuals.append(S)
    return np.stack(weights), residuals, projectors


def deviation(a, b) -> float:
    return float((torch.as_tensor(a) - torch.as_tensor(b)).abs().max())


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_equals_the_public_code():
    g = tensors("galore_tall_std")
    weights, states, _ = trajectory(g["w0"], g["grads"], g["proj"], rank=4, gap=10, scale=0.25)
    assert deviation(weights, g["weights"]) < 2e-6
    for key in ("exp_avg", "exp_avg_sq"):
        assert deviation(torch.stack([state[key] for state in states]), g[key]) < 2e-6


def test_equals_the_public_code_without_its_projectors_until_the_first_refresh_after_step_0():
    g = tensors("galore_tall_std")
    weights, *_ = trajectory(g["w0"], g["grads"], rank=4, gap=10, scale=0.25)
    assert deviation(weights[:10], g["weights"][:10]) < 2e-6


@pytest.mark.parametrize("injected", [True, False])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("spec_galore_ef0.2_gap10_tall_std", {"gap": 10, "error_feedback": 0.2}),
        ("spec_galore_ef0.0_dyn3_from6_max9_tall_std", {"gap": 3, **DYNAMICS}),
    ],
)
def test_equals_the_definitions(name, options, injected):
    g = tensors(name)
    weights, states, _ = trajectory(g["w0"], g["grads"], g["proj"] if injected else (), rank=4, scale=1.0, **options)
    assert weights.dtype == torch.float64
    assert deviation(weights, g["weights"]) < 1e-12
    if "error_feedback" in options:
        left_out = [state["residual"] for state in states]
    else:
        left_out = [G - G @ s["projector"].T @ s["projector"] for G, s in zip(g["grads"], states, strict=True)]
    assert deviation(torch.stack(left_out), g["residual"]) < 1e-12


@given(
    shape=st.sampled_from([(14, 6), (6, 14), (9, 9)]),
    side=st.sampled_from(["std", "reverse_std", "left", "right"]),
    feedback=st.sampled_from([0.0, 0.1]),
    decay=st.sampled_from([0.0, 0.1]),
    dynamic=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_definitions_written_out(shape, side, feedback, decay, dynamic, seed):
    w0, grads = draw(shape, 30, seed)
    tall = shape[0] >= shape[1]
    right = side == "right" or (side == "std" and tall) or (side == "reverse_std" and not tall)
    wanted, residuals, projectors = naive(
        w0, grads, rank=3, gap=4, right=right, scale=0.5, feedback=feedback, decay=decay, grows=dynamic and (6, 9)
    )
    options = {"rank": 3, "gap": 4, "scale": 0.5, "side": side, "error_feedback": feedback, "weight_decay": decay}
    options |= DYNAMICS if dynamic else {}
    weights, states, optimizer = trajectory(w0, grads, **options)
    assert deviation(weights, wanted) < 1e-9
    assert optimizer.status == {"refreshes": len(projectors), "skipped_zero": 0}
    keys = {"step", "last_refresh", "gap", "projector", "exp_avg", "exp_avg_sq"} | (
        {"residual"} if feedback else set()
    )
    for state, residual in zip(states, residuals, strict=True):
        assert set(state) == keys
        if feedback:
            S, P = state["residual"], state["projector"]
            assert deviation(S, residual) < 1e-9
            assert float((S @ P.T if right else P.T @ S).abs().max()) < 1e-12  # S ⟂ P
    injected = [torch.from_numpy(np.ascontiguousarray(P)).float() for P in projectors]
    weights, *_ = trajectory(w0.float(), grads.float(), injected, **options)
    assert deviation(weights, wanted) < 2e-6


@given(w=st.sampled_from([0.1, 0.2, 1.0]), gap=st.integers(2, 9), side=st.sampled_from(["left", "right"]))
def test_error_feedback_changes_nothing_until_the_first_refresh_after_step_0(w, gap, side):
    w0, grads = draw((10, 7), gap + 3)
    plain, *_ = trajectory(w0, grads, rank=2, gap=gap, side=side)
    fed, *_ = trajectory(w0, grads, rank=2, gap=gap, side=side, error_feedback=w)
    assert deviation(plain[:gap], fed[:gap]) < 1e-12
    assert deviation(plain[gap], fed[gap]) > 1e-6


def test_refreshes_of_p2():
    rule = {"dynamic": True, "dynamic_from": 200, "dynamic_max": 2500}
    assert refresh_schedule(50, 20_000, **rule) == P2_REFRESHES
    assert len(P2_REFRESHES) == 19
    assert sum(t >= 200 for t in P2_REFRESHES) == 15  # P2's count
    assert refresh_schedule(50, 20_000) == list(range(0, 20_000, 50))


@given(gap=st.integers(1, 12), total=st.integers(1, 40), first=st.integers(0, 20), most=st.integers(12, 20))
def test_the_optimizer_keeps_the_schedule(gap, total, first, most):
    rule = {"dynamic": True, "dynamic_from": first, "dynamic_max": most}
    w0, grads = draw((4, 3), total)
    _, states, optimizer = trajectory(w0, grads, rank=1, gap=gap, **rule)
    steps = refresh_schedule(gap, total, **rule)
    assert sorted({state["last_refresh"] for state in states}) == steps
    assert optimizer.status["refreshes"] == len(steps)


def test_the_whole_space_and_no_scale_is_adam():
    w0, grads = draw((8, 5), 30)
    options = {"rank": 5, "gap": 100, "side": "right", "scale": 1.0, "eps": 0.0}
    ours, *_ = trajectory(w0, grads, [torch.eye(5)], **options)
    # In a turned basis V GaLore is Adam on W·Vᵀ: only the axes along which v is kept differ.
    turned, states, _ = trajectory(w0, grads, **options)
    V = states[-1]["projector"]
    for start, gradients, weights in [(w0, grads, ours), (w0 @ V.T, grads @ V.T, turned @ V.T)]:
        weight = nn.Parameter(start.clone())
        adam = torch.optim.AdamW([weight], 0.01, eps=0.0, weight_decay=0.0)
        for gradient, expected in zip(gradients, weights, strict=True):
            weight.grad = gradient
            adam.step()
            assert deviation(weight.detach(), expected) < 1e-12


def test_parameters_of_a_group_without_rank_get_adamw():
    random = torch.Generator().manual_seed(0)
    matrix, vector = nn.Parameter(torch.randn(6, 4, generator=random)), nn.Parameter(torch.randn(5, generator=random))
    twin = nn.Parameter(vector.detach().clone())
    plain = {"eps": 1e-4, "betas": (0.8, 0.9), "weight_decay": 0.1}
    both = GaLore([{"params": [matrix]}, {"params": [vector], "rank": None, **plain}], 0.02, rank=2)
    alone = AdamW([twin], 0.02, **plain)
    for _ in range(10):
        matrix.grad = torch.randn(6, 4, generator=random)
        vector.grad = twin.grad = torch.randn(5, generator=random)
        both.step()
        alone.step()
    assert torch.equal(vector, twin)
    assert set(both.state[vector]) == {"step", "exp_avg", "exp_avg_sq"}
    assert both.status["refreshes"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("state_dtype", [None, torch.float32, torch.bfloat16])
def test_goes_on_from_a_file_to_the_same_bits(dtype, state_dtype):
    w0, grads = (x.to(dtype) for x in draw((8, 6), 24))

    def begin(matrix: torch.Tensor, vector: torch.Tensor, **other: Any) -> tuple[list[nn.Parameter], GaLore]:
        weights = [nn.Parameter(matrix.detach().clone()), nn.Parameter(vector.detach().clone())]
        groups = [{"params": weights[:1]}, {"params": weights[1:], "rank": None}]
        options = {"rank": 2, "gap": 3, "error_feedback": 0.2, "weight_decay": 0.1, **DYNAMICS, **other}
        return weights, GaLore(groups, 0.01, state_dtype=state_dtype, **options)

    def go_on(weights: list[nn.Parameter], optimizer: GaLore, steps: range) -> None:
        for t in steps:
            weights[0].grad, weights[1].grad = grads[t].clone(), grads[t][0].clone()
            optimizer.step()

    through, whole = begin(w0, w0[0])
    go_on(through, whole, range(11))
    assert all(p.dtype == dtype for p in through)
    saved = through_a_file(whole.state_dict())
    resumed, fresh = begin(*through, gap=7)  # the file's settings replace it
    fresh.load_state_dict(saved)
    for each in (through, resumed):
        go_on(each, whole if each is through else fresh, range(11, 24))
    assert whole.status == fresh.status == {"refreshes": 5, "skipped_zero": 0}
    for a, b in zip(through, resumed, strict=True):
        assert torch.equal(a, b)
        for key, value in whole.state[a].items():
            assert type(value) is type(fresh.state[b][key])
            if isinstance(value, torch.Tensor):
                assert value.dtype == fresh.state[b][key].dtype, key
                assert torch.equal(value, fresh.state[b][key]), key
            else:
                assert value == fresh.state[b][key], key
    state = whole.state[through[0]]
    assert state["projector"].dtype == torch.promote_types(dtype, torch.float32)
    assert {state[key].dtype for key in ("exp_avg", "exp_avg_sq", "residual")} == {state_dtype or dtype}


def test_a_saved_state_is_plain():
    _, _, optimizer = trajectory(*draw((6, 4), 3), rank=2, gap=2, error_feedback=0.1, state_dtype=torch.bfloat16)

    def check(value: Any) -> None:
        if isinstance(value, dict | list | tuple):
            for part in value.values() if isinstance(value, dict) else value:
                check(part)
        else:
            assert isinstance(value, torch.Tensor | int | float | str | None)

    check(optimizer.state_dict())


def test_the_last_injected_projector_wins_and_serves_one_refresh():
    w0, grads = draw((6, 4), 4)
    weight = nn.Parameter(w0.clone())
    optimizer = GaLore([weight], 0.01, rank=2, gap=2)
    first, second = torch.eye(4).double()[:2], torch.eye(4).double()[2:]
    seen = []
    for t, gradient in enumerate(grads):
        if t == 0:
            optimizer.inject_projector(weight, first)
            optimizer.inject_projector(weight, second)
        if t == 1:
            optimizer.inject_projector(weight, first)  # waits for t = 2
            second.zero_()  # what was injected is a copy
            file = through_a_file(optimizer.state_dict())
            optimizer.load_state_dict(file)
        weight.grad = gradient
        optimizer.step()
        seen.append(optimizer.state[weight]["projector"].clone())
    assert [deviation(P, torch.eye(4)[half : half + 2]) for P, half in zip(seen, (2, 2, 0, 0), strict=True)] == [
        0
    ] * 4


@pytest.mark.parametrize(("side", "shape"), [("right", (2, 4)), ("left", (6, 2))])
def test_an_injected_projector_of_another_shape_is_an_error(side, shape):
    weight, vector = nn.Parameter(torch.zeros(6, 4)), nn.Parameter(torch.zeros(3))
    optimizer = GaLore([{"params": [weight]}, {"params": [vector], "rank": None}], 0.01, rank=2, side=side)
    optimizer.inject_projector(weight, torch.zeros(shape))
    with pytest.raises(ValueError, match=rf"the {side} one of a \(6, 4\) matrix is \({shape[0]}, {shape[1]}\)"):
        optimizer.inject_projector(weight, torch.zeros(shape[::-1]))
    for other in (vector, nn.Parameter(torch.zeros(6, 4))):
        with pytest.raises(ValueError, match="in no group with a rank"):
            optimizer.inject_projector(other, torch.zeros(shape))


def test_canonical_signs_make_the_largest_entry_positive():
    w0, grads = draw((7, 5), 1)
    for side in ("left", "right"):
        _, states, _ = trajectory(w0, grads, rank=3, gap=1, side=side)
        P = states[0]["projector"] if side == "right" else states[0]["projector"].T
        assert (P.gather(1, P.abs().argmax(1, keepdim=True)) > 0).all()
    raw = trajectory(w0, grads, rank=3, gap=1, sign="lapack")[1][0]["projector"]
    assert torch.equal(raw, torch.linalg.svd(grads[0], full_matrices=False)[2][:3])


def test_a_gradient_that_is_not_finite_at_a_refresh_is_named_and_nothing_is_changed():
    w0, grads = draw((40, 16), 3)
    weights, states, optimizer = trajectory(w0, grads, rank=4, gap=3, error_feedback=0.1)
    weight = optimizer.param_groups[0]["params"][0]
    weight.grad = grads[0].clone()
    weight.grad[0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    with pytest.raises(ProjectionError, match=r"\(40, 16\) at step 3: 3 of 640 gradient entries are not finite"):
        optimizer.step()
    assert torch.equal(weight, weights[-1])
    for key, value in states[-1].items():
        assert torch.equal(torch.as_tensor(optimizer.state[weight][key]), torch.as_tensor(value)), key
    assert optimizer.status["refreshes"] == 1


def test_a_failing_svd_is_named(monkeypatch):
    def fails(*_args: Any, **_options: Any) -> None:
        raise torch.linalg.LinAlgError("did not\nconverge")

    monkeypatch.setattr(torch.linalg, "svd", fails)
    with pytest.raises(
        ProjectionError, match=r"\(6, 4\) at step 0: the SVD of the gradient failed \(did not converge"
    ):
        trajectory(*draw((6, 4), 1), rank=2, gap=1)


def test_a_gradient_of_zeros_at_a_refresh():
    w0, grads = draw((6, 4), 6)
    grads[[0, 1, 4]] = 0
    weights, states, optimizer = trajectory(w0, grads, rank=2, gap=2, weight_decay=0.1)
    assert torch.equal(weights[1], w0)  # no projector: left alone, and its first step is still to come
    assert states[0] == states[1] == {}
    assert [state.get("step") for state in states] == [None, None, 1, 2, 3, 4]
    # Due at its step 2 (t = 4), where the gradient is zero: the old projector serves, and the refresh comes next.
    assert [state.get("last_refresh") for state in states] == [None, None, 0, 0, 0, 3]
    assert torch.equal(states[4]["projector"], states[2]["projector"])
    assert not torch.equal(weights[4], weights[3])
    assert optimizer.status == {"refreshes": 2, "skipped_zero": 3}


def test_a_matrix_without_a_gradient_is_left_alone():
    weight = nn.Parameter(torch.ones(3, 3))
    optimizer = GaLore([weight], 1.0, rank=1, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(weight, torch.ones(3, 3))
    assert weight not in optimizer.state


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rank", 5, r"rank: 5 does not fit a matrix of shape \(6, 4\)"),
        ("rank", 0, "rank: must be"),
        ("rank", 1.5, "rank: must be"),
        ("gap", 0, "gap: must be"),
        ("scale", 0.0, "scale: must be"),
        ("side", "up", "side: must be one of std, reverse_std, left, right"),
        ("sign", "plus", "sign: must be one of canonical, lapack"),
        ("error_feedback", -0.1, "error_feedback: must be"),
        ("dynamic_from", -1, "dynamic_from: must be"),
        ("dynamic_max", 3, "dynamic_max: must be"),
        ("lr", -1.0, "lr: must be"),
        ("eps", float("nan"), "eps: must be"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(field, value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        GaLore([nn.Parameter(torch.ones(6, 4))], **{"lr": 0.1, "rank": 2, "dynamic": True, field: value})


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
def test_only_matrices_go_through_galore(shape):
    with pytest.raises(ValueError, match="needs a group with rank=None"):
        GaLore([nn.Parameter(torch.ones(shape))], 0.1, rank=2)
