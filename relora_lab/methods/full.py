"""Full-rank training: every weight, one optimizer. Also Control, as a full run of a smaller size."""

from dataclasses import dataclass

from relora_lab.methods import _options


@dataclass(frozen=True, kw_only=True)
class Options(_options.Options):
    """Nothing to set."""
