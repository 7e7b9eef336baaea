"""A quantizer with its range, from tensor to elements, in one kernel."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from quantizers.formats import Format, IntFormat, Overflow
from quantizers.granularity import compact_shape

from . import team
from .layout import is_granule_major, walk
from .serving import MODES, SOURCES, TARGETS, constants, is_plain, made, operand, serves

if TYPE_CHECKING:  # which needs noise, which needs this package
    from quantizers.rounding import Rounding


class Running(NamedTuple):
    """A running range: see ranges.Ema.  low, high: fp32, one entry; steps: int64."""

    low: Tensor
    high: Tensor
    steps: Tensor
    momentum: float
    update: bool
    use: bool

    def plain(self) -> bool:
        """Whether a kernel may write it."""
        return (
            all(is_plain(t) and t.numel() == 1 for t in self[:3])
            and self.low.dtype == self.high.dtype == torch.float32
            and self.steps.dtype == torch.int64
        )


def whole(
    x: Tensor,
    block: tuple[int, ...],
    absmax: bool,
    running: Running | None,
    format: Format,
    rounding: Rounding,
    key: Tensor | None,
    overflow: Overflow | None,
    factor: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """(elements, scale, zero point) of x * factor over its extremes, as a Quantizer makes them.

    x: fp16, bf16 or fp32, any shape of which each granule is a run in memory; absmax: whether the
    range is symmetric; factor: fp32, broadcastable to x, one granule only.  None where no kernel
    serves these.
    """
    if (
        not serves(x)
        or x.dtype not in SOURCES
        or x.numel() == 0
        or not operand(key, torch.int64, ())
    ):
        return None
    compact = compact_shape(x.shape, block)
    granules = 1
    for size in compact:
        granules *= size
    if granules > 1 and (factor is not None or running is not None):
        return None
    if running is not None and not running.plain():
        return None
    cut = block
    if factor is not None:
        if factor.dtype != torch.float32 or not is_plain(factor) or factor.dim() != x.dim():
            return None
        factor = factor.contiguous()
        cut = tuple(
            1 if size > 1 else max(whole, 1)
            for size, whole in zip(factor.shape, x.shape, strict=True)
        )
        if compact_shape(x.shape, cut) != tuple(factor.shape):
            return None
    integer = isinstance(format, IntFormat)
    dtype = format.dtype if isinstance(format, IntFormat) else torch.float32
    elements = torch.empty_like(x, dtype=dtype)
    noisy = key is not None and rounding.random_bits > 0
    path = walk(tuple(x.shape), x.stride(), elements.stride(), cut, noisy)
    if path is None or (granules > 1 and not is_granule_major(path)):
        return None
    kernel = made(
        "quantizers.kernels.compiled_whole", "quantize",
        SOURCES[x.dtype], TARGETS[dtype], MODES[rounding.mode], factor is not None,
    )  # fmt: skip
    if kernel is None:
        return None
    affine = integer and not getattr(format, "symmetric", True)
    scale = torch.empty(compact, dtype=torch.float32, device=x.device)
    zero_point = torch.empty(compact, dtype=torch.int32, device=x.device) if affine else None
    slots = (ctypes.c_int32 * (2 * torch.get_num_threads()))()
    momentum = 0.0 if running is None else running.momentum
    known = constants(format, overflow, momentum)
    key = None if key is None else key.contiguous()
    kept = (None, None, None) if running is None else running[:3]
    low, high, steps = (0 if t is None else t.data_ptr() for t in kept)
    words = (
        *path[:4], x.data_ptr(), elements.data_ptr(), scale.data_ptr(),
        0 if zero_point is None else zero_point.data_ptr(),
        0 if key is None else key.data_ptr(),
        rounding.random_bits, ctypes.addressof(known),
        0 if factor is None else factor.data_ptr(),
        granules, ctypes.addressof(slots), absmax, affine, format.signed, steps, low, high,
        running is not None and running.update, running is not None and running.use, *path.words,
    )  # fmt: skip
    team.run(kernel.address, words, path.size)
    return elements, scale, zero_point
