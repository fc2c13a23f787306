"""The two number formats of the lab by the names that settings use, and what products are computed in."""

import torch

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype of "float32" or "bf16"."""
    return DTYPES[name]


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """What tensors of `dtype` are multiplied in: autocast's dtype where it is on, but float64 stays, as in torch."""
    kind = device.type
    if dtype == torch.float64 or not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return dtype
    return torch.get_autocast_dtype(kind)
