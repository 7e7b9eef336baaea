"""Elements from a tensor and its scale, and back to numbers, in one pass each."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quantizers.formats import Format, IntFormat, Overflow
from quantizers.granularity import compact_shape

from . import team
from .layout import walk
from .serving import MODES, SOURCES, TARGETS, constants, is_dense, made, operand, serves

if TYPE_CHECKING:  # which needs noise, which needs this package
    from quantizers.rounding import Rounding


def elements(
    x: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    block: tuple[int, ...],
    format: Format,
    rounding: Rounding,
    key: Tensor | None,
    overflow: Overflow | None = None,
) -> Tensor | None:
    """round(x / scale) + zero_point, clamped to the format: elements as a Quantizer makes them.

    x: fp16, bf16 or fp32; scale (fp32), zero_point (int32): compact, scale None for no division;
    key: 0-d int64.
    -> the format's integer dtype, or fp32 for a FloatFormat, in x's layout; None where no kernel
    serves x.
    """
    if not serves(x) or x.dtype not in SOURCES or x.numel() == 0:
        return None
    dtype = format.dtype if isinstance(format, IntFormat) else torch.float32
    compact = compact_shape(x.shape, block)
    if not (
        operand(scale, torch.float32, compact)
        and operand(zero_point, torch.int32, compact)
        and operand(key, torch.int64, ())
    ):
        return None
    result = torch.empty_like(x, dtype=dtype)
    noisy = key is not None and rounding.random_bits > 0
    path = walk(tuple(x.shape), x.stride(), result.stride(), block, noisy)
    if path is None:
        return None
    numbers = SOURCES[x.dtype], TARGETS[dtype], MODES[rounding.mode]
    kernel = made("quantizers.kernels.compiled", "quantize", *numbers, scale is not None)
    if kernel is None:
        return None
    numbers_of_format = constants(format, overflow)
    kept = [None if t is None else t.contiguous() for t in (scale, zero_point, key)]
    pointers = [0 if t is None else t.data_ptr() for t in kept]
    words = (
        *path[:4], x.data_ptr(), result.data_ptr(),
        *pointers, rounding.random_bits, ctypes.addressof(numbers_of_format), *path.words,
    )  # fmt: skip
    team.run(kernel.address, words, path.size)
    return result


def unshifted(elements: Tensor, zero_point: Tensor | None) -> Tensor | None:
    """elements - zero_point in fp32, in the elements' layout.

    elements: int8, uint8, int16 or int32; zero_point: int32, one entry.  None where no kernel
    serves them.
    """
    target = TARGETS.get(elements.dtype, 0)
    if target == 0 or not serves(elements) or elements.numel() == 0:
        return None
    if zero_point is not None and not (
        zero_point.numel() == 1 and operand(zero_point, torch.int32, zero_point.shape)
    ):
        return None
    result = torch.empty_like(elements, dtype=torch.float32)
    if result.stride() != elements.stride() or not is_dense(elements):
        return None
    kernel = made("quantizers.kernels.compiled", "unshift", target)
    if kernel is None:
        return None
    zero = 0 if zero_point is None else zero_point.data_ptr()
    words = elements.numel(), elements.data_ptr(), result.data_ptr(), zero
    team.run(kernel.address, words, elements.numel())
    return result
