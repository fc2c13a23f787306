"""The low-rank layer, y = xWᵀ + b + s·xAᵀBᵀ with W frozen, and putting it into and taking it out of a model."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from relora_lab import methods, seeds
from relora_lab.costs import merging_pays
from relora_lab.forms import Weight, as_it_is, frozen_weight, low_rank_linear, merged_weight
from relora_lab.precision import product_dtype
from relora_lab.quantise import Kind, QuantisedWeight, require_library
from relora_lab.tied import own_tensors

if TYPE_CHECKING:
    from relora_lab.methods._options import LowRankOptions

# How a cycle begins: from the merged W (out, in), float32 or wider, and a generator to B (out, r) and A (r, in).
Split = Callable[[Tensor, torch.Generator | None], tuple[Tensor, Tensor]]


@contextmanager
def exactly() -> Iterator[None]:
    """Compute in the dtypes that are there: no gradients, and no autocast that a caller has on."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


class LowRankLinear(nn.Module):
    """A linear map W (out, in) with trained factors B (out, r) and A (r, in); scale s = alpha / r.

    It takes over the weight and bias of `base` (no copy) and freezes the weight. Factors have the weight's
    dtype and device. `split` makes them out of W (default: `random_factors`, LoRA's), and W − s·B·A is what is
    frozen beside them; with `whole` W is left as it is, and the function jumps. `quantise` holds the frozen weight as
    "int8" or "nf4" codes. `alpha` defaults to the rank. How the product is computed depends on its shapes
    (forms.py); `rebuild` keeps no W + s·B·A for the backward pass but makes it again, which codes always do.
    Raises ValueError for a rank the matrix cannot have and for a weight that is not finite.
    """

    weight: Tensor | QuantisedWeight
    rebuild = False
    _passes = 1  # forward passes that see the weights as they are, and what they all multiply with
    _kept: dict[Any, tuple[Weight, tuple[Tensor, ...]]] | None = None

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        alpha: float | None = None,
        *,
        split: Split | None = None,
        whole: bool = False,
        quantise: Kind | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_rank(rank, base)
        W = base.weight.detach()
        self.out_features, self.in_features = W.shape
        self.scale = (rank if alpha is None else alpha) / rank
        self._split, self._whole = split or partial(random_factors, rank), whole
        self.lora_A = nn.Parameter(W.new_empty(rank, self.in_features))
        self.lora_B = nn.Parameter(W.new_empty(self.out_features, rank))
        self.weight = QuantisedWeight(W, quantise) if quantise else base.weight
        self.bias = base.bias
        self._begin(wide(W), generator)
        base.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        A, B = self._factors(x)
        return self._linear(x, A, B, self._weight_for(x, A, B), self.bias)

    @property
    def quantisation_error(self) -> float:
        """‖W as it is held − W‖ / ‖W‖, in the Frobenius norm, of the newest W; 0 if it is not quantised."""
        return float(self.weight.error) if isinstance(self.weight, QuantisedWeight) else 0.0

    @exactly()
    def start_from_zero(self, generator: torch.Generator | None = None) -> None:
        """Set W to 0 and draw A and B both: with W = B = 0 nothing would ever train (P1's first public code)."""
        self._hold(torch.zeros_like(self.frozen_weight()))
        self.lora_A.copy_(kaiming(self.lora_A.shape, generator))
        self.lora_B.copy_(kaiming(self.lora_B.shape, generator))

    @exactly()
    def frozen_weight(self) -> Tensor:
        """W (out, in), without the factors, in float32 or wider."""
        if isinstance(self.weight, QuantisedWeight):
            return self.weight.dequantise(torch.float32)
        return wide(self.weight)

    @exactly()
    def update(self) -> Tensor:
        """s·B·A (out, in), in float32 or wider."""
        return wide(self.lora_B) @ wide(self.lora_A) * self.scale

    @exactly()
    def merged_weight(self) -> Tensor:
        """The one weight (out, in) that gives this layer's function: made in float32 or wider, in W's dtype."""
        return self._merged().to(self.weight.dtype)

    @exactly()
    def merge(self) -> None:
        """W ← the merged weight and B ← 0: the function stays."""
        self._hold(self._merged())
        self.lora_B.zero_()

    @exactly()
    def restart(self, generator: torch.Generator | None = None) -> Mapping[nn.Parameter, Tensor]:
        """Merge and make new factors out of the merged weight, in float32 or wider (P1 Algorithm 1, lines 15, 16).

        `generator` is a CPU generator (default: torch's own). Returns, of parameters that go on, where their
        sign was turned: there the optimizer has to turn its momentum.
        """
        self._begin(self._merged(), generator)
        return {}

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, rank={self.lora_A.shape[0]}, scale={self.scale:g}"

    def _factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A and B in the dtype that x is multiplied in."""
        dtype = product_dtype(x.device, self.lora_A.dtype)
        return self.lora_A.to(dtype), self.lora_B.to(dtype)

    def _linear(self, x: Tensor, A: Tensor, B: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
        """x(W + s·B·A)ᵀ + b, in the factors' dtype."""
        return low_rank_linear(x.to(A.dtype), A, B, None if bias is None else bias.to(A.dtype), self.scale, weight)

    @torch.no_grad()
    def _weight_for(self, x: Tensor, A: Tensor, B: Tensor) -> Weight:
        """What x is multiplied with, made of the weights as they are now."""
        merged = self._merges(x.numel() // self.in_features)
        if self._kept is None or torch.compiler.is_compiling():  # a graph cannot read versions
            return self._make_weight(A, B, merged)
        tensors = (self.lora_A, self.lora_B, *self._frozen())
        now = tuple((id(tensor), tensor.data_ptr(), tensor._version) for tensor in tensors)
        key = (now, A.dtype, merged, torch.is_inference_mode_enabled())
        if key not in self._kept:
            self._kept.clear()
            self._kept[key] = self._make_weight(A, B, merged), tensors  # which live on, so that no id is used again
        return self._kept[key][0]

    def _merges(self, tokens: int) -> bool:
        passes = 1 if torch.compiler.is_compiling() else self._passes
        share = tokens / 2 if self._rebuilds else tokens * passes  # of one W + s·B·A
        return merging_pays(share, self.out_features, self.in_features)

    def _make_weight(self, A: Tensor, B: Tensor, merged: bool) -> Weight:
        read = self.weight.reader(A.dtype) if isinstance(self.weight, QuantisedWeight) else as_it_is
        make = partial(merged_weight, read, self.scale) if merged else partial(frozen_weight, read)
        made, held = make(B, A, *self._frozen()), self._frozen()
        return Weight(made, merged, make, held) if self._rebuilds else Weight(made, merged)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: not a promise about this layer (`unchanging`)."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_passes", "_kept")}

    @property
    def _rebuilds(self) -> bool:
        return self.rebuild or isinstance(self.weight, QuantisedWeight)

    def _frozen(self) -> tuple[Tensor, ...]:
        """The tensors that W is held in."""
        return (self.weight.codes, self.weight.scales) if isinstance(self.weight, QuantisedWeight) else (self.weight,)

    def _merged(self) -> Tensor:
        return self.frozen_weight() + self.update()

    @exactly()
    def _begin(self, W: Tensor, generator: torch.Generator | None) -> None:
        """Begin a cycle at the merged weight W."""
        _check_finite(W)
        B, A = self._split(W, generator)
        self.lora_B.copy_(B)
        self.lora_A.copy_(A)
        self._hold(W if self._whole else W - self.update())  # of B and A as they are stored

    def _hold(self, W: Tensor) -> None:
        """Make W the frozen weight."""
        if isinstance(self.weight, QuantisedWeight):
            self.weight.store(W)
        else:
            self.weight.copy_(W)


def random_factors(rank: int, W: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """B = 0 and A ~ U(−1/√in, 1/√in): LoRA's and ReLoRA's `split` (Kaiming with a = √5)."""
    rows, cols = W.shape
    return W.new_zeros(rows, rank), kaiming((rank, cols), generator)


def kaiming(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """U(−1/√cols, 1/√cols), drawn on the CPU in float32: the same numbers on every device."""
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


@contextmanager
def unchanging(layers: Iterable[LowRankLinear], passes: int) -> Iterator[None]:
    """Promise that no weight changes inside, in `passes` forward passes: W + s·B·A is then made once for all of them.

    Without the promise it is made in every forward pass, and is never stale. What breaks it is noticed (a step of an
    optimizer, an assignment, a change that `_version` counts), but for a change in place through `.data`.
    """
    layers = list(layers)

    def forget(*_: Any) -> None:
        for layer in layers:
            if layer._kept is not None:
                layer._kept.clear()

    for layer in layers:
        layer._passes, layer._kept = passes, {} if passes > 1 and not layer._rebuilds else None
    # A fused optimizer changes parameters behind `_version`.
    hook = register_optimizer_step_post_hook(forget)
    try:
        yield
    finally:
        hook.remove()
        for layer in layers:
            layer._passes, layer._kept = 1, None


def wrap(
    model: nn.Module,
    rank: int,
    alpha: float | None = None,
    *,
    method: str = "relora",
    seed: int = 0,
    exclude: Collection[str] = (),
    **options: Any,
) -> dict[str, LowRankLinear]:
    """Put a method's low-rank layer in place of every nn.Linear of `model` but its head and those in `exclude`.

    `options` are fields of the method's Options. Returns the new layers by module name, in the model's order. Factors
    are a function of (seed, name). Everything else stays as trainable as it was. Raises BadInput for a method or
    option that is not there, and ValueError if there is nothing to wrap, a matrix is too small for the rank, not
    finite, or its weight another module's too; the model is then as it was.
    """
    return wrap_with(methods.low_rank_options(method, rank, alpha, **options), model, seed=seed, exclude=exclude)


def wrap_with(
    options: "LowRankOptions",
    model: nn.Module,
    *,
    seed: int = 0,
    exclude: Collection[str] = (),
) -> dict[str, LowRankLinear]:
    """As `wrap`, with the method's Options made."""
    found = {name: module for name, module in linear_maps(model).items() if name not in exclude}
    if not found:
        raise ValueError("the model has no nn.Linear to wrap (wrapped already?)")
    if options.quantise:
        require_library(options.quantise)
    for name, module in found.items():  # all of them, before the first one's weight is changed
        try:
            _check_rank(options.rank, module)
            _check_finite(module.weight)
            _check_shared(model, name, module)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    layers = {}
    for name, module in found.items():
        layers[name] = options.layer(module, seeds.generator(seed, "factors", 0, name))
        model.set_submodule(name, layers[name])
    return layers


def unwrap(model: nn.Module) -> None:
    """Put a plain nn.Linear with the merged, trainable weight back in place of every low-rank layer."""
    for name, layer in low_rank_layers(model).items():
        out_features, in_features = layer.weight.shape
        linear = nn.Linear(in_features, out_features, device="meta")
        linear.weight = nn.Parameter(layer.merged_weight())
        linear.bias = layer.bias
        model.set_submodule(name, linear)


def linear_maps(model: nn.Module) -> dict[str, nn.Linear]:
    """The nn.Linear modules of `model` by name, but for its head, over tokens or over labels (`score`)."""
    head = getattr(model, "get_output_embeddings", lambda: None)() or getattr(model, "score", None)
    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(module, nn.Linear) and module is not head}


def low_rank_layers(model: nn.Module) -> dict[str, LowRankLinear]:
    """The model's low-rank layers by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRankLinear)}


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, on the CPU, of the model as if it had never been wrapped, one W merged after the other."""
    layers = low_rank_layers(model)
    own = {f"{name}.{key}" for name, layer in layers.items() for key in layer.state_dict() if key != "bias"}
    weights = {f"{name}.weight": layer.merged_weight().cpu() for name, layer in layers.items()}
    return {name: tensor.cpu() for name, tensor in own_tensors(model).items() if name not in own} | weights


def _check_rank(rank: int, linear: nn.Linear) -> None:
    if not isinstance(linear, nn.Linear):
        raise ValueError(f"{type(linear).__name__} is no nn.Linear")
    rows, cols = linear.weight.shape
    if not 1 <= rank <= min(rows, cols):
        raise ValueError(f"rank {rank} does not fit a matrix of {rows}×{cols}")


def _check_finite(W: Tensor) -> None:
    if not W.isfinite().all():
        raise ValueError("the weight is not finite")


def _check_shared(model: nn.Module, name: str, linear: nn.Linear) -> None:
    every = model.named_parameters(remove_duplicate=False)
    others = [other for other, p in every if p is linear.weight and other != f"{name}.weight"]
    if others:
        raise ValueError(f"its weight is {others[0]} too, and cannot be frozen; exclude=['{name}'] leaves it out")


def wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
