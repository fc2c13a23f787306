"""LoRA (Hu et al. 2022): y = x(W + s·B·A)ᵀ with W frozen. Factors are never merged during training.

With `restart_every`, optimizer resets and the jagged schedule act on the same factors: the rows of P1's
Table 6 without restarts.
"""

from dataclasses import dataclass

from relora_lab.methods import _options


@dataclass(frozen=True, kw_only=True)
class Options(_options.LowRankOptions):
    """As LowRankOptions."""
