"""The low-rank layer, y = xWᵀ + b + s·xAᵀBᵀ with W frozen, and putting it into and taking it out of a model."""

import math
from collections.abc import Callable, Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relora_lab import seeds
from relora_lab.quantise import Kind, QuantisedWeight, frozen_linear

# How a cycle begins: from the merged W (out, in), float32 or wider, and a generator to B (out, r), A (r, in) and
# the W that is frozen beside them.
Split = Callable[[Tensor, torch.Generator | None], tuple[Tensor, Tensor, Tensor]]


class LowRankLinear(nn.Module):
    """A linear map W (out, in) with trained factors B (out, r) and A (r, in); scale s = alpha / r.

    It takes over the weight and bias of `base` (no copy) and freezes the weight. Factors have the weight's
    dtype and device. `split` makes them out of W (default: `random_factors`, LoRA's); `quantise` holds W as
    "int8" or "nf4" codes. `alpha` defaults to the rank. Raises ValueError for a rank the matrix cannot have.
    """

    weight: Tensor | QuantisedWeight

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        alpha: float | None = None,
        *,
        split: Split | None = None,
        quantise: Kind | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_rank(rank, base)
        out_features, in_features = base.weight.shape
        W = base.weight
        W.requires_grad_(False)
        self.weight = QuantisedWeight(W, quantise) if quantise else W
        self.bias = base.bias
        self.scale = (rank if alpha is None else alpha) / rank
        self.quantisation_error = 0.0  # of the newest W, relative, in the Frobenius norm
        self.lora_A = nn.Parameter(W.new_empty(rank, in_features))
        self.lora_B = nn.Parameter(W.new_empty(out_features, rank))
        self._split = split or (lambda W, generator: random_factors(W, rank, generator))
        self._begin(_wide(W), generator)

    def forward(self, x: Tensor) -> Tensor:
        return self._frozen(x, self.bias) + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale

    @torch.no_grad()
    def start_from_zero(self, generator: torch.Generator | None = None) -> None:
        """Set W to 0 and draw A and B both: with W = B = 0 nothing would ever train (P1's first public code)."""
        self._hold(torch.zeros_like(self.frozen_weight()))
        self.lora_A.copy_(kaiming(self.lora_A.shape, generator))
        self.lora_B.copy_(kaiming(self.lora_B.shape, generator))

    @torch.no_grad()
    def frozen_weight(self) -> Tensor:
        """W (out, in), without the factors, in float32 or wider."""
        if isinstance(self.weight, QuantisedWeight):
            return self.weight.dequantise(torch.float32)
        return _wide(self.weight)

    @torch.no_grad()
    def update(self) -> Tensor:
        """s·B·A (out, in), in float32 or wider."""
        return _wide(self.lora_B) @ _wide(self.lora_A) * self.scale

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The one weight (out, in) that gives this layer's function: made in float32 or wider, in W's dtype."""
        return self._merged().to(self.weight.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """W ← the merged weight and B ← 0: the function stays."""
        self._hold(self._merged())
        self.lora_B.zero_()

    @torch.no_grad()
    def restart(self, generator: torch.Generator | None = None) -> Mapping[nn.Parameter, Tensor]:
        """Merge and make new factors out of the merged weight, in float32 or wider (P1 Algorithm 1, lines 15, 16).

        `generator` is a CPU generator (default: torch's own). Returns, of parameters that go on, where their
        sign was turned: there the optimizer has to turn its momentum.
        """
        self._begin(self._merged(), generator)
        return {}

    def extra_repr(self) -> str:
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}, rank={self.lora_A.shape[0]}, scale={self.scale:g}"

    def _frozen(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x Wᵀ + b."""
        if isinstance(self.weight, QuantisedWeight):
            return frozen_linear(x, self.weight, bias)
        return F.linear(x, self.weight, bias)

    def _merged(self) -> Tensor:
        return self.frozen_weight() + self.update()

    @torch.no_grad()
    def _begin(self, W: Tensor, generator: torch.Generator | None) -> None:
        """Begin a cycle at the merged weight W."""
        B, A, rest = self._split(W, generator)
        self._hold(rest)
        self.lora_B.copy_(B)
        self.lora_A.copy_(A)

    def _hold(self, W: Tensor) -> None:
        """Make W the frozen weight."""
        if isinstance(self.weight, QuantisedWeight):
            self.quantisation_error = self.weight.store(W)
        else:
            self.weight.copy_(W)


class RowScaledLinear(LowRankLinear):
    """y = (m/n)·x(W + s·B·A)ᵀ + b, with n the L2 norm of each row of W + s·B·A and m (out,) trained.

    n counts as a constant in the backward pass (DoRA, Liu et al. 2024, §4.3). m begins as W's row norms, so the
    function is that of W.
    """

    magnitude: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        direction = self._frozen(x) + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale
        with torch.no_grad():
            norm = _row_norms(self.frozen_weight() + self.update()).to(self.magnitude.dtype)
        y = direction * (self.magnitude / norm).to(direction.dtype)
        return y if self.bias is None else y + self.bias

    @torch.no_grad()
    def restart(self, generator: torch.Generator | None = None) -> Mapping[nn.Parameter, Tensor]:
        """As LowRankLinear; m, the row norms of the merged weight, is |m| as it was: it goes on."""
        turned = self.magnitude < 0
        super().restart(generator)
        return {self.magnitude: turned}

    def _merged(self) -> Tensor:
        summed = super()._merged()
        return summed * (_wide(self.magnitude) / _row_norms(summed))[:, None]

    def _hold(self, W: Tensor) -> None:
        super()._hold(W)
        norms = torch.linalg.vector_norm(W, dim=1).to(self.weight.dtype)
        if "magnitude" in self._parameters:
            self.magnitude.copy_(norms)
        else:
            self.magnitude = nn.Parameter(norms)


def random_factors(W: Tensor, rank: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    """B = 0, A ~ U(−1/√in, 1/√in), and W as it is: LoRA's and ReLoRA's `split` (Kaiming with a = √5)."""
    rows, cols = W.shape
    return W.new_zeros(rows, rank), kaiming((rank, cols), generator), W


def kaiming(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """U(−1/√cols, 1/√cols), drawn on the CPU in float32: the same numbers on every device."""
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def wrap(
    model: nn.Module,
    rank: int,
    alpha: float | None = None,
    *,
    seed: int = 0,
    exclude: Collection[str] = (),
    layer: Callable[[nn.Linear, torch.Generator], LowRankLinear] | None = None,
) -> dict[str, LowRankLinear]:
    """Put a low-rank layer in place of every nn.Linear of `model` but its output head and those in `exclude`.

    `layer` makes it from the linear map and a generator (default: a LowRankLinear; a method's `Options.layer`).
    Returns the new layers by module name, in the model's order. Factors are a function of (seed, name).
    Everything else stays as trainable as it was. Raises ValueError, and leaves the model
    as it was, if there is nothing to wrap or a matrix is too small for the rank.
    """
    found = {name: module for name, module in linear_maps(model).items() if name not in exclude}
    if not found:
        raise ValueError("the model has no nn.Linear to wrap (wrapped already?)")
    for name, module in found.items():
        _check_rank(rank, module, f"{name}: ")
    layers = {}
    for name, module in found.items():
        generator = seeds.generator(seed, "factors", 0, name)
        layers[name] = layer(module, generator) if layer else LowRankLinear(module, rank, alpha, generator=generator)
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
    """The nn.Linear modules of `model` by name, but for its output head."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(module, nn.Linear) and module is not head}


def low_rank_layers(model: nn.Module) -> dict[str, LowRankLinear]:
    """The model's low-rank layers by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRankLinear)}


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the model as if it had never been wrapped, every W merged."""
    layers = low_rank_layers(model)
    own = {f"{name}.{key}" for name, layer in layers.items() for key in layer.state_dict() if key != "bias"}
    weights = {f"{name}.weight": layer.merged_weight() for name, layer in layers.items()}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in own} | weights


def _check_rank(rank: int, linear: nn.Linear, where: str = "") -> None:
    rows, cols = linear.weight.shape
    if not 1 <= rank <= min(rows, cols):
        raise ValueError(f"{where}rank {rank} does not fit a matrix of {rows}×{cols}")


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _row_norms(W: Tensor) -> Tensor:
    """The L2 norm of each row, to divide by: a row of zeros has norm tiny."""
    return torch.linalg.vector_norm(W, dim=1).clamp_min(torch.finfo(W.dtype).tiny)
