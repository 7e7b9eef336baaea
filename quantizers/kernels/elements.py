"""Elements from a tensor and its scale, and back to numbers, in one pass each."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from quantizers.formats import Format, Overflow
from quantizers.memory import serves
from quantizers.rounding import Rounding

from . import team
from .plan import plan
from .serving import TARGETS, made, operand


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
    noisy = rounding.random_bits > 0
    if not serves(x) or (noisy and (key is None or not operand(key, torch.int64, ()))):
        return None
    path = plan(x.dtype, x.shape, x.stride(), block, format, rounding, overflow)
    if (
        path is None
        or (scale is not None and not operand(scale, torch.float32, path.compact))
        or (zero_point is not None and not operand(zero_point, torch.int32, path.compact))
    ):
        return None
    scaled = scale is not None
    kernel = made("quantizers.kernels.compiled_elements", "quantize", *path.numbers, scaled)
    if kernel is None:
        return None
    result = torch.empty_strided(x.shape, path.strides, dtype=path.dtype, device=x.device)
    scale = None if scale is None else scale.contiguous()
    zero_point = None if zero_point is None else zero_point.contiguous()
    team.run(
        kernel.address,
        (
            *path.words,
            x.data_ptr(),
            result.data_ptr(),
            0 if scale is None else scale.data_ptr(),
            0 if zero_point is None else zero_point.data_ptr(),
            0 if key is None or not noisy else key.data_ptr(),
            rounding.random_bits,
            ctypes.addressof(path.constants),
            0,  # no factor
        ),
        path.walk.size,
    )
    return result


def unshifted(elements: Tensor, zero_point: Tensor | None) -> Tensor | None:
    """elements - zero_point in fp32, in the elements' layout.

    elements: int8, uint8, int16 or int32; zero_point: int32, one entry.  None where no kernel
    serves them.
    """
    target = TARGETS.get(elements.dtype, 0)
    if target == 0 or elements.numel() == 0:
        return None
    if zero_point is None:
        if not serves(elements):
            return None
    elif (
        zero_point.dtype is not torch.int32
        or zero_point.numel() != 1
        or not serves(elements, zero_point)
    ):
        return None
    result = torch.empty_like(elements, dtype=torch.float32)
    if result.stride() != elements.stride():  # gaps or overlaps: the result has none
        return None
    kernel = made("quantizers.kernels.compiled_elements", "unshift", target)
    if kernel is None:
        return None
    zero = 0 if zero_point is None else zero_point.data_ptr()
    words = elements.numel(), elements.data_ptr(), result.data_ptr(), zero
    team.run(kernel.address, words, elements.numel())
    return result
