"""DoRA's layer, y = (m/n)·x(W + s·B·A)ᵀ + b: row norms n, and magnitudes m that are trained."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from relora_lab.lowrank import LowRankLinear, exactly, wide


class RowScaledLinear(LowRankLinear):
    """y = (m/n)·x(W + s·B·A)ᵀ + b, with n the L2 norm of each row of W + s·B·A and m (out,) trained.

    n counts as a constant in the backward pass (DoRA, Liu et al. 2024, §4.3). m begins as W's row norms, so the
    function is that of W. W + s·B·A is made in any case, for its norms.
    """

    magnitude: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        A, B = self._factors(x)
        weight = self._weight_for(x, A, B)
        direction = self._linear(x, A, B, weight, None)
        n = _row_norms(weight.tensor).to(self.magnitude.dtype)
        y = direction * (self.magnitude / n).to(direction.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    @exactly()
    def restart(self, generator: torch.Generator | None = None) -> Mapping[nn.Parameter, Tensor]:
        """As LowRankLinear; m, the row norms of the merged weight, is |m| as it was: it goes on."""
        turned = self.magnitude < 0
        super().restart(generator)
        return {self.magnitude: turned}

    def _merges(self, tokens: int) -> bool:  # noqa: ARG002
        return True

    def _merged(self) -> Tensor:
        summed = super()._merged()
        return summed * (wide(self.magnitude) / _row_norms(summed))[:, None]

    def _hold(self, W: Tensor) -> None:
        super()._hold(W)
        norms = torch.linalg.vector_norm(W, dim=1).to(self.weight.dtype)
        if "magnitude" in self._parameters:
            self.magnitude.copy_(norms)
        else:
            self.magnitude = nn.Parameter(norms)


def _row_norms(W: Tensor) -> Tensor:
    """The L2 norm of each row, in float32 or wider, to divide by: of a row of zeros it is tiny."""
    norms = torch.linalg.vector_norm(W, dim=1, dtype=torch.promote_types(W.dtype, torch.float32))
    return norms.clamp_min(torch.finfo(norms.dtype).tiny)
