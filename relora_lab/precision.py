"""The two number formats of the lab by the names that settings use."""

import torch

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype of "float32" or "bf16"."""
    return DTYPES[name]
