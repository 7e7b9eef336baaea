"""A quantizer in one kernel: from a tensor and its scale to elements, or with its range before."""

from __future__ import annotations

import ctypes
import math
import struct
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantizers.devices.by_device import restored
from quantizers.devices.memory import fresh, serves
from quantizers.formats import Format
from quantizers.qtensor import QTensor
from quantizers.ranges.rules import AbsMax, MinMax
from quantizers.rounding import Rounding, nearest_even

from . import team
from .plan import Plan, plan, plan_whole, remembered
from .serving import made
from .whole import form

_ELEMENTS, _WHOLE = (f"quantizers.kernels.compiled_{name}" for name in ("elements", "whole"))
#: addresses: of the elements' part, x, elements, scale, zero point, key, factor, low, high, share,
#: steps
_places = struct.Struct("11q").pack


def _words(path: Plan, rounding: Rounding, *others: int) -> bytes:
    """All but addresses.  others: how many granules, then flags."""
    constants = rounding.random_bits, ctypes.addressof(path.constants)
    return team.packed(*path.words, *constants, *(others or (0,) * 5))


class _Whole(NamedTuple):
    """What quantizes tensors of one dtype, shape and layout.

    kernel, part   as `made` takes them;  words: their first;  plan: of the elements
    block    sizes of a granule
    scales   shape and strides of the scales, None where there are none
    shifted  whether there are zero points
    """

    kernel: tuple[Any, ...]
    part: tuple[Any, ...]
    words: bytes
    plan: Plan
    format: Format
    block: tuple[int, ...]
    scales: tuple[tuple[int, ...], tuple[int, ...]] | None
    shifted: bool

    def __call__(
        self, x: Tensor, factor: Tensor | None, key: Tensor | None, running: tuple[Tensor, ...]
    ) -> QTensor | None:
        part, kernel = made(*self.part), made(*self.kernel)
        if kernel is None or part is None:
            return None
        path, device = self.plan, x.device
        elements = fresh(x.shape, path.strides, path.dtype, x)
        scale = zero_point = None
        first = second = 0
        if self.scales is not None:
            scale = torch.empty_strided(*self.scales, dtype=torch.float32, device=device)
            first = scale.data_ptr()
        if self.shifted and self.scales is not None:
            zero_point = torch.empty_strided(*self.scales, dtype=torch.int32, device=device)
            second = zero_point.data_ptr()
        factor = None if factor is None else factor.contiguous()
        words = self.words + _places(
            part.address, x.data_ptr(), elements.data_ptr(), first, second,
            0 if key is None else key.data_ptr(), 0 if factor is None else factor.data_ptr(),
            *([part.data_ptr() for part in running] or (0, 0, 0, 0)),
        )  # fmt: skip
        team.run(kernel.address, words + bytes(8 * torch.get_num_threads()), path.walk.size)
        return QTensor(elements, scale, zero_point, self.format, self.block)


@lru_cache(maxsize=4096)
def _whole(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    spec: str,
    running: bool,
    training: bool,
    factor: tuple[int, ...] | None,
) -> _Whole | None:
    """For a quantizer's `spec`: without a range, or by extremes; factor: its shape.  None where no
    kernel serves."""
    by = restored(spec)
    format, rounding = by.format, by.rounding
    if by.range is None:
        path = plan(dtype, shape, strides, shape, format, rounding, False)
        if path is None or factor is not None:
            return None
        part = _ELEMENTS, "codes", *path.numbers, 0, False
        kernel: tuple[Any, ...] = _ELEMENTS, "quantize"
        return _Whole(kernel, part, _words(path, rounding), path, format, tuple(shape), None, False)
    rule, momentum, use = remembered(by.range, running, training)
    if type(rule) not in (AbsMax, MinMax) or not by._plain:
        return None
    found = plan_whole(dtype, shape, strides, by.granularity, format, rounding, momentum, factor)
    if found is None:
        return None
    words = _words(
        found.plan, rounding, math.prod(found.compact), type(rule) is AbsMax, format.signed,
        running and training, use,
    )  # fmt: skip
    folded = factor is not None
    kernel = _WHOLE, "quantize", found.plan.numbers[0], folded
    part = _ELEMENTS, "codes", *found.plan.numbers, 1, folded
    scales = found.compact, found.steps
    return _Whole(kernel, part, words, found.plan, format, found.block, scales, found.shifted)


#: See steps.quantize.  x: fp16, bf16 or fp32, any shape of which each granule is a run in memory;
#: range: none, absmax, minmax, or an Ema of these with its state; factor: one granule only
whole = form(_whole, serves)


def elements(
    x: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    block: tuple[int, ...],
    format: Format,
    rounding: Rounding = nearest_even,
    key: Tensor | None = None,
    multiplied: bool = False,
) -> Tensor | None:
    """round(x / scale) + zero_point, clamped to the format: elements as a Quantizer makes them.

    x: fp16, bf16 or fp32; scale (fp32), zero_point (int32): compact, scale None for no division;
    key: 0-d int64; multiplied: x * scale, fp32's largest where that passes it, in the place of
    x / scale.
    -> the format's integer dtype, or fp32 for a FloatFormat, in x's layout; None where no kernel
    serves x.
    """
    noise = key if rounding.random_bits else None
    if rounding.random_bits and (noise is None or noise.dim()):
        return None
    read = [x]
    for part, dtype in ((noise, torch.int64), (scale, torch.float32), (zero_point, torch.int32)):
        if part is not None:
            if part.dtype is not dtype:
                return None
            read.append(part)
    if not serves(*read):
        return None
    scaled = 0 if scale is None else 2 if multiplied else 1
    path = plan(
        x.dtype, x.shape, x.stride(), block, format, rounding, scaled > 0, runs=scaled > 0
    )  # fmt: skip
    if (
        path is None
        or (scale is not None and scale.shape != path.compact)
        or (zero_point is not None and zero_point.shape != path.compact)
    ):
        return None
    part = made(_ELEMENTS, "codes", *path.numbers, scaled, False)
    kernel = made(_ELEMENTS, "quantize")
    if kernel is None or part is None:
        return None
    result = fresh(x.shape, path.strides, path.dtype, x)
    # what must live until the kernel has run
    held = [None if t is None else t.contiguous() for t in (scale, zero_point, noise)]
    places = [0 if t is None else t.data_ptr() for t in held]
    words = _places(part.address, x.data_ptr(), result.data_ptr(), *places, *[0] * 5)
    team.run(kernel.address, _words(path, rounding) + words, path.walk.size)
    return result
