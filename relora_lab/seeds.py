"""Seeds derived from (seed, what for), so that no stream of random numbers has a position to lose."""

import hashlib

import torch


def derive(seed: int, *purpose: object) -> int:
    """A 63-bit seed that is a function of `seed` and `purpose` alone, e.g. derive(0, "factors", cycle, name)."""
    text = repr((seed, *purpose)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator seeded by `derive`: the same numbers on every device."""
    return torch.Generator().manual_seed(derive(seed, *purpose))
