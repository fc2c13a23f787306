"""Whatever form a low-rank layer is computed in: values, gradients, cost, and that nothing in it is stale."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_near, kept_for_backward
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from relora_lab import costs, forms, methods, seeds
from relora_lab.lowrank import LowRankLinear, unchanging
from relora_lab.quantise import QuantisedWeight

# Rows of x, m, n, rank.
SHAPES = {"apart": (6, 24, 20, 4), "merged": (50, 24, 20, 4), "by gradient": (200, 20, 24, 16)}
STEPS = {
    "fused": lambda parameters: torch.optim.AdamW(parameters, 0.1, fused=True),
    "foreach": lambda parameters: torch.optim.AdamW(parameters, 0.1, foreach=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, 1e-5),
}


def form(tokens, rows, cols, rank):
    """Which of the three costs least."""
    by_gradient = costs.full_gradient_pays(tokens, rows, cols, rank)
    return ("by gradient" if by_gradient else "merged") if costs.merging_pays(tokens, rows, cols) else "apart"


def layer_and_input(tokens, rows, cols, rank, *, alpha=3.0, seed=0, method="lora", **options):
    """A layer with a bias whose factors are not zero, and x (1, tokens, cols)."""
    random = torch.Generator().manual_seed(seed)
    base = nn.Linear(cols, rows)
    with torch.no_grad():
        base.weight.normal_(generator=random)
        base.bias.normal_(generator=random)
        layer = methods.layer(method, base, rank, alpha, **options)
        layer.lora_A.normal_(generator=random)
        layer.lora_B.normal_(generator=random)
    return layer, torch.randn(1, tokens, cols, generator=random)


def plain(layer, x):
    """The definition, in float64."""
    A, B, W = (tensor.double() for tensor in (layer.lora_A, layer.lora_B, layer.frozen_weight()))
    y = F.linear(x, W) + F.linear(F.linear(x, A), B) * layer.scale
    if hasattr(layer, "magnitude"):
        norms = torch.linalg.vector_norm(W + layer.scale * B.detach() @ A.detach(), dim=1)
        y = y * (layer.magnitude.double() / norms)
    return y + layer.bias.double()


def outcome(function, layer, x):
    """y and the gradients of x and of every parameter that is trained, for a loss that is no plain sum."""
    x = x.detach().requires_grad_()
    trained = [p for p in layer.parameters() if p.requires_grad]
    y = function(x)
    return [y, *torch.autograd.grad(y.double().square().sum(), [x, *trained])]


def assert_fresh(layer, x):
    assert_near([layer(x)], [plain(layer, x.double())], 1e-6)


# ---- values and gradients


@pytest.mark.parametrize("rebuild", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_every_form_has_the_values_and_gradients_of_the_definition(name, rebuild):
    assert form(*SHAPES[name]) == name
    layer, x = layer_and_input(*SHAPES[name])
    layer.rebuild = rebuild
    assert_near(outcome(layer, layer, x), outcome(lambda x: plain(layer, x.double()), layer, x), 1e-6)


@given(
    tokens=st.integers(1, 120),
    rows=st.integers(1, 40),
    cols=st.integers(1, 40),
    rank=st.integers(1, 40),
    alpha=st.floats(0.1, 64),
    seed=st.integers(0, 99),
    method=st.sampled_from(["lora", "redora"]),
    quantise=st.sampled_from([None, "int8"]),
)
def test_so_they_are_for_any_shape(tokens, rows, cols, rank, alpha, seed, method, quantise):
    if quantise:
        pytest.importorskip("bitsandbytes")
    options = {} if method == "lora" else {"restart_every": 10, "restart_warmup": 1}
    rank = min(rank, rows, cols)
    layer, x = layer_and_input(
        tokens, rows, cols, rank, alpha=alpha, seed=seed, method=method, quantise=quantise, **options
    )
    found, expected = (outcome(f, layer, x) for f in (layer, lambda x: plain(layer, x.double())))
    assert_near(found, expected, 2e-6)  # float32: of a layer of one row, the sum has few terms to even out


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("method", ["lora", "redora"])
def test_in_bfloat16_by_autocast_it_is_near(name, method):
    options = {} if method == "lora" else {"restart_every": 10, "restart_warmup": 1}
    layer, x = layer_and_input(*SHAPES[name], method=method, **options)
    exact = outcome(lambda x: plain(layer, x.double()), layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(layer, layer, x)
    assert found[0].dtype == torch.bfloat16
    assert [tensor.dtype for tensor in found[1:]] == [torch.float32] * (len(found) - 1)
    assert_near(found, exact, 2**-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", SHAPES)
def test_other_dtypes_compute_in_their_own(name, dtype):
    layer, x = layer_and_input(*SHAPES[name])
    layer, x = layer.to(dtype), x.to(dtype)
    found = outcome(layer, layer, x)
    assert {tensor.dtype for tensor in found} == {dtype}
    tolerance = 2**-6 if dtype == torch.bfloat16 else 1e-14
    assert_near(found, outcome(lambda x: plain(layer, x.double()), layer, x), tolerance)


@pytest.mark.parametrize("frozen", ["lora_A", "lora_B", "bias"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_factor_can_be_frozen(name, frozen):
    layer, x = layer_and_input(*SHAPES[name])
    getattr(layer, frozen).requires_grad_(False)
    assert_near(outcome(layer, layer, x), outcome(lambda x: plain(layer, x.double()), layer, x), 1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_gradient_checkpointing_changes_no_bit(name, reentrant):
    layer, x = layer_and_input(*SHAPES[name])
    found = torch.autograd.grad(checkpoint(layer, x.requires_grad_(), use_reentrant=False).sum(), [x, layer.lora_A])
    if reentrant:  # which fills .grad alone
        checkpoint(layer, x, use_reentrant=True).sum().backward()
        found = [x.grad, layer.lora_A.grad]
    assert all(map(torch.equal, found, torch.autograd.grad(layer(x).sum(), [x, layer.lora_A])))


# ---- cost


@given(
    tokens=st.integers(1, 300),
    rows=st.integers(1, 64),
    cols=st.integers(1, 64),
    rank=st.integers(1, 64),
)
def test_products_are_as_many_as_the_formulas_say_and_no_form_has_fewer(tokens, rows, cols, rank):
    rank = min(rank, rows, cols)
    T, m, n, r = tokens, rows, cols, rank
    cost = {
        "apart": 4 * T * m * n + 6 * T * r * (m + n),
        "merged": 4 * T * m * n + 4 * T * r * (m + n) + 2 * m * n * r,
        "by gradient": 6 * T * m * n + 4 * m * n * r + 2 * m * n * r,
    }
    layer, x = layer_and_input(T, m, n, r)
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}  # which torch does not count
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        layer(x.requires_grad_()).sum().backward()
    chosen = form(T, m, n, r)
    assert counter.get_total_flops() == cost[chosen]
    assert cost[chosen] <= min(cost["merged"], cost["apart"]) or chosen == "by gradient"
    if chosen == "by gradient":
        assert cost[chosen] < cost["merged"]


@pytest.mark.parametrize(("rebuild", "most"), [(False, 24 * 20), (True, 0)])
def test_rebuilding_keeps_nothing_of_the_weights_size(rebuild, most):
    layer, x = layer_and_input(*SHAPES["merged"])
    layer.rebuild = rebuild
    kept = kept_for_backward(lambda: layer(x.requires_grad_()), [x, *layer.parameters()])
    assert sum(tensor.numel() for tensor in kept) == most


# ---- never stale


@pytest.mark.parametrize("rebuild", [False, True])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", SHAPES)
def test_a_step_is_seen_by_the_next_forward_pass(name, step, rebuild):
    layer, x = layer_and_input(*SHAPES[name])
    layer.rebuild = rebuild
    optimizer = STEPS[step]([layer.lora_A, layer.lora_B])
    for _ in range(3):
        for part in x.chunk(2, dim=1):
            layer(part).square().sum().backward()
        optimizer.step()
        assert_fresh(layer, x)


CHANGES = {
    "restart": lambda layer: layer.restart(seeds.generator(1)),
    "merge": lambda layer: layer.merge(),
    "load": lambda layer: layer.load_state_dict({k: v * 1.5 for k, v in copy.deepcopy(layer.state_dict()).items()}),
    "from zero": lambda layer: layer.start_from_zero(seeds.generator(1)),
    "no_grad": lambda layer: nn.init.normal_(layer.lora_B),
    "weight": lambda layer: nn.init.normal_(layer.weight),
}
UNSEEN = {  # by Tensor._version
    ".data": lambda layer: layer.lora_A.data.mul_(2),
    ".data of W": lambda layer: layer.weight.data.mul_(2),
    "new .data": lambda layer: setattr(layer.lora_B, "data", layer.lora_B.data * 2),
}


@pytest.mark.parametrize("change", [*CHANGES, *UNSEEN])
def test_a_change_is_seen_by_the_next_forward_pass(change):
    layer, x = layer_and_input(*SHAPES["merged"])
    layer(x)
    (CHANGES | UNSEEN)[change](layer)
    assert_fresh(layer, x)
    with torch.no_grad():
        assert_fresh(layer, x)


@pytest.mark.parametrize("change", [*CHANGES, "new .data"])
def test_a_broken_promise_is_noticed_where_it_can_be(change):
    layer, x = layer_and_input(*SHAPES["merged"])
    with unchanging([layer], passes=4):
        layer(x)
        (CHANGES | UNSEEN)[change](layer)
        assert_fresh(layer, x)
        for _ in range(2):
            nn.init.normal_(layer.lora_A)
            assert_fresh(layer, x)
    assert_fresh(layer, x)


def test_what_is_promised_not_to_change_is_merged_once(monkeypatch):
    made = []
    merge = forms.merge
    monkeypatch.setattr(forms, "merge", lambda *args: made.append(args) or merge(*args))
    layer, x = layer_and_input(*SHAPES["merged"])
    whole = outcome(layer, layer, x)
    few = [torch.autograd.grad(layer(x[:, :6]).sum(), layer.lora_A)]  # apart
    assert len(made) == 1
    with unchanging([layer], passes=9):
        assert_near(outcome(layer, layer, x), whole, 0)
        for _ in range(8):
            few.append(torch.autograd.grad(checkpoint(layer, x[:, :6], use_reentrant=False).sum(), layer.lora_A))
    assert len(made) == 2
    for one, other in itertools.pairwise(few):
        assert_near(one, other, 1e-6)
    layer(x)
    assert len(made) == 3


@pytest.mark.parametrize("step", STEPS)
def test_a_step_inside_the_promise_is_noticed(step):
    layer, x = layer_and_input(*SHAPES["merged"])
    optimizer = STEPS[step]([layer.lora_A, layer.lora_B])
    with unchanging([layer], passes=4):
        for _ in range(2):
            layer(x).square().sum().backward()
            optimizer.step()
            assert_fresh(layer, x)


def test_other_parameters_in_the_layer_are_noticed():
    layer, x = layer_and_input(*SHAPES["merged"])
    with unchanging([layer], passes=4):
        layer(x)
        layer.lora_B = nn.Parameter(2 * layer.lora_B.detach())
        assert_fresh(layer, x)
        found = torch.func.functional_call(layer, {"lora_A": 3 * layer.lora_A.detach()}, (x,))
    layer.lora_A.data.mul_(3)
    assert_near([found], [plain(layer, x.double())], 1e-6)


def test_a_pass_without_gradients_does_not_spoil_a_later_one():
    layer, x = layer_and_input(*SHAPES["merged"])
    with unchanging([layer], passes=4):
        for context in (torch.inference_mode, torch.no_grad):
            with context():
                layer(x)
            layer(x).sum().backward()


def test_the_promise_ends_with_its_block_even_by_an_error():
    layer, x = layer_and_input(*SHAPES["merged"])
    with pytest.raises(KeyError), unchanging([layer], passes=2):
        layer(x)
        raise KeyError
    layer.lora_B.data.mul_(2)
    assert_fresh(layer, x)


def test_graphs_may_be_walked_in_any_order():
    layer, x = layer_and_input(*SHAPES["merged"])
    alone = [torch.autograd.grad(layer(part).square().sum(), layer.lora_A)[0] for part in (x, 2 * x, 3 * x)]
    first, second = layer(x), layer(2 * x)
    first.square().sum().backward()
    third = layer(3 * x)
    for y in (third, second):
        y.square().sum().backward()
    assert_near([layer.lora_A.grad], [sum(alone)], 1e-6)


@pytest.mark.parametrize("changed", ["lora_A", "lora_B", "weight"])
def test_a_change_between_forward_and_backward_is_an_error(changed):
    layer, x = layer_and_input(*SHAPES["merged"])
    layer.rebuild = True
    y = layer(x)
    with torch.no_grad():
        getattr(layer, changed).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_second_derivative_is_an_error():
    layer, x = layer_and_input(*SHAPES["merged"])
    (gradient,) = torch.autograd.grad(layer(x.requires_grad_()).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_codes_are_read_and_never_kept_as_a_weight():
    pytest.importorskip("bitsandbytes")
    layer, x = layer_and_input(*SHAPES["merged"], quantise="nf4")
    assert isinstance(layer.weight, QuantisedWeight)
    with unchanging([layer], passes=3):
        kept = kept_for_backward(lambda: layer(x), [])
    assert not [tensor for tensor in kept if tensor.shape == (24, 20)]
    y = layer(x.requires_grad_())
    layer.weight.store(torch.ones(24, 20))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_layer_and_its_copy_go_their_own_ways():
    layer, x = layer_and_input(*SHAPES["merged"])
    with unchanging([layer], passes=2):
        layer(x)
        other = copy.deepcopy(layer)
        other(x)
    other.lora_B.data.mul_(2)
    assert_fresh(other, x)
    assert_fresh(layer, x)
    assert isinstance(other, LowRankLinear)


@pytest.mark.parametrize("name", SHAPES)
def test_autocast_during_the_backward_pass_plays_no_part(name):
    layer, x = layer_and_input(*SHAPES[name])
    y, expected = layer(x).sum(), torch.autograd.grad(layer(x).sum(), layer.lora_A)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(y, layer.lora_A)
    assert torch.equal(*found, *expected)


def test_compiled_it_is_the_same_and_not_stale():
    layer, x = layer_and_input(*SHAPES["merged"])
    compiled = torch.compile(layer, backend="aot_eager")
    optimizer = STEPS["fused"]([layer.lora_A, layer.lora_B])
    with unchanging([layer], passes=2):
        for _ in range(2):
            assert_near(outcome(compiled, layer, x), outcome(lambda x: plain(layer, x.double()), layer, x), 1e-6)
            compiled(x).square().sum().backward()
            optimizer.step()
