"""Frozen weights held as 8-bit or 4-bit codes (codecs: bitsandbytes)."""

import functools
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relora_lab.errors import BadInput
from relora_lab.optional import library

Kind = Literal["int8", "nf4"]
BLOCK = 64  # weights that share a scale: QLoRA's choice, and the smallest that both codecs have on a GPU


class QuantisedWeight(nn.Module):
    """A matrix W (out, in) as codes and a scale for each block of 64 weights, taken row after row.

    The scale is the block's largest |w|, in float32; the last block is filled up with zeros. Code points are
    k/127 for −127 ≤ k ≤ 127 ("int8": symmetric absmax), or the 16 of NormalFloat ("nf4": Dettmers et al. 2023,
    QLoRA, §3, without its double quantisation). Buffers: `codes` uint8 (blocks, 64) or, two codes a byte,
    (blocks, 32), `scales` float32 (blocks,), and `error`, what the newest `store` returned. `.to(dtype)` changes
    what is dequantised, never the scales. Raises ValueError for a weight that is not a finite matrix, BadInput
    without bitsandbytes.
    """

    codes: Tensor
    scales: Tensor
    error: Tensor

    def __init__(self, weight: Tensor, kind: Kind) -> None:
        super().__init__()
        require_library(kind)
        if weight.ndim != 2 or not weight.numel():
            raise ValueError(f"only a matrix can be quantised, not a tensor of shape {tuple(weight.shape)}")
        self.kind: Kind = kind
        self.shape, self.dtype = weight.shape, weight.dtype
        blocks = -(-weight.numel() // BLOCK)
        width = BLOCK if kind == "int8" else BLOCK // 2
        self.register_buffer("codes", torch.empty(blocks, width, dtype=torch.uint8, device=weight.device))
        self.register_buffer("scales", torch.empty(blocks, dtype=torch.float32, device=weight.device))
        self.register_buffer("error", torch.zeros((), device=weight.device))
        self.store(weight)

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes held: 1 + 1/16 a weight for int8, 1/2 + 1/16 for nf4."""
        return self.codes.nbytes + self.scales.nbytes

    @torch.no_grad()
    def dequantise(self, dtype: torch.dtype | None = None) -> Tensor:
        """W (out, in), a new tensor in `dtype` (default: that of the weight it was made from)."""
        return self.reader(dtype or self.dtype)(self.codes, self.scales)

    def reader(self, dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
        """What makes W of `codes` and `scales`, by no other state of this module."""
        return functools.partial(_dequantise, kind=self.kind, shape=self.shape, dtype=dtype)

    @torch.no_grad()
    def store(self, weight: Tensor) -> float:
        """Quantise another W (out, in) into the same buffers; returns ‖dequantised − W‖ / ‖W‖ (0 for W = 0).

        W is read in float32, and so is the error. Raises ValueError, and changes nothing, if W has another
        shape or is not finite. What `dequantise(torch.float32)` gave is stored without any error.
        """
        if weight.shape != self.shape:
            raise ValueError(f"a weight of shape {tuple(weight.shape)} in place of one of {tuple(self.shape)}")
        wide = weight.detach().to(self.device, torch.float32)
        largest = wide.abs().amax()
        if not largest.isfinite():
            raise ValueError("the weight to quantise is not finite (in float32)")
        blocks = F.pad(wide.reshape(-1), (0, -wide.numel() % BLOCK)).view(-1, BLOCK)
        bnb = _library()
        if self.kind == "int8":
            codes, state = bnb.quantize_blockwise(blocks, code=_code_points(self.device), blocksize=BLOCK)
        else:
            codes, state = bnb.quantize_4bit(blocks, blocksize=BLOCK, quant_type=self.kind)
        self.codes.copy_(codes.view_as(self.codes))
        self.scales.copy_(state.absmax)
        self.error.zero_()
        if largest:
            error = (self.dequantise(torch.float32) - wide) / largest  # scaled: no square over- or underflows
            self.error.copy_(error.norm() / (wide / largest).norm())
        return float(self.error)

    def extra_repr(self) -> str:
        return f"{self.shape[1]}, {self.shape[0]}, kind={self.kind}, dtype={self.dtype}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        scales = self.scales
        dtype = fn(torch.empty(1, dtype=self.dtype, device=self.device)).dtype
        super()._apply(fn, recurse)
        self.dtype = dtype
        if self.scales.dtype != torch.float32:
            self.scales = scales.to(self.codes.device)
        return self


def require_library(kind: str) -> None:
    """Raise BadInput, with the fix, unless what quantises to `kind` ("int8" or "nf4") is installed."""
    if kind not in ("int8", "nf4"):
        raise BadInput(f"method.quantise = {kind!r}: it is 'int8' or 'nf4'")
    _library()


def _dequantise(codes: Tensor, scales: Tensor, kind: Kind, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    bnb = _library()
    known = dtype if dtype in (torch.float16, torch.bfloat16) else torch.float32
    if kind == "int8":
        state = bnb.QuantState(absmax=scales, code=_code_points(codes.device), blocksize=BLOCK, dtype=known)
        blocks = bnb.dequantize_blockwise(codes, state)
    else:
        size = torch.Size((len(scales), BLOCK))
        state = bnb.QuantState(absmax=scales, shape=size, blocksize=BLOCK, quant_type=kind, dtype=known)
        blocks = bnb.dequantize_4bit(codes.view(-1, 1), state)  # one row of codes it would take for a transpose
    flat: Tensor = blocks.view(-1)[: shape.numel()]
    return flat.view(shape).to(dtype)


@functools.cache
def _code_points(device: torch.device) -> Tensor:
    """k/127 for −127 ≤ k ≤ 127, 0 twice: the library's map, whose second 0 is 4e-9 before the rounding."""
    points: Tensor = _library().create_linear_map()
    return points.mul(127).round().div(127).to(device)


@functools.cache
def _library() -> ModuleType:
    # On the import it warns of a kernel for inference that it could not fetch.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    return library("bitsandbytes.functional", "quant", "method.quantise")
