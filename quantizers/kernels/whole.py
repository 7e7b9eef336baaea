"""A quantizer with its range, from tensor to elements, in one kernel."""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from quantizers.formats import FloatFormat, Format, IntFormat, Overflow
from quantizers.granularity import Granularity, compact_shape
from quantizers.memory import serves
from quantizers.ranges import AbsMax, MinMax, RangeRule, State
from quantizers.rounding import Rounding
from quantizers.running_range import Ema

from . import team
from .layout import contiguous, is_granule_major
from .plan import Plan, plan
from .serving import made


class _Running(NamedTuple):
    """A running range: see running_range.Ema.  low, high, share: fp32, one entry; steps: int64."""

    low: Tensor
    high: Tensor
    share: Tensor
    steps: Tensor
    momentum: float
    update: bool
    use: bool


class Whole(NamedTuple):
    """What a kernel made: see QTensor."""

    elements: Tensor
    scale: Tensor
    zero_point: Tensor | None
    block: tuple[int, ...]


def whole(
    x: Tensor,
    granularity: Granularity,
    rule: RangeRule,
    format: Format,
    rounding: Rounding,
    state: State | None,
    key: Tensor | None,
    training: bool,
    factor: Tensor | None,
) -> Whole | None:
    """Elements, scale and zero point of x * factor over its extremes, as a Quantizer makes them.

    x: fp16, bf16 or fp32, any shape of which each granule is a run in memory; rule: absmax,
    minmax, or an Ema of these with its `state`; factor: fp32, broadcastable to x, one granule
    only.  None where no kernel serves these.
    """
    running = None
    if isinstance(rule, Ema) and state is not None:
        running = _Running(
            state["low"], state["high"], state["share"], state["steps"],
            rule.momentum, training, not (training and rule.train_on == "batch"),
        )  # fmt: skip
        rule = rule.rule
    if type(rule) not in (AbsMax, MinMax):
        return None
    overflow = format.when_clipped if isinstance(format, FloatFormat) else None
    noisy = rounding.random_bits > 0
    read = [x]
    if noisy:
        if key is None or key.dtype is not torch.int64 or key.dim():
            return None
        read.append(key)
    if factor is not None:
        if factor.dtype is not torch.float32:
            return None
        read.append(factor)
    if running is not None:
        kinds = torch.float32, torch.float32, torch.float32, torch.int64
        for part, dtype in zip(running[:4], kinds, strict=True):
            if part.dtype is not dtype or part.numel() != 1:
                return None
        read += running[:4]
    if not serves(*read):
        return None
    found = _plan(
        x.dtype, x.shape, x.stride(), granularity, format, rounding, overflow,
        None if running is None else running.momentum, None if factor is None else factor.shape,
    )  # fmt: skip
    if found is None:
        return None
    block, compact, steps, path = found
    numbers = path.numbers
    kernel = made("quantizers.kernels.compiled_whole", "quantize", *numbers, factor is not None)
    if kernel is None:
        return None
    # empty_strided takes two thirds of the time of empty
    device = x.device
    elements = torch.empty_strided(x.shape, path.strides, dtype=path.dtype, device=device)
    scale = torch.empty_strided(compact, steps, dtype=torch.float32, device=device)
    zero_point = None
    if isinstance(format, IntFormat) and not format.symmetric:
        zero_point = torch.empty_strided(compact, steps, dtype=torch.int32, device=device)
    slots = (ctypes.c_int32 * (2 * torch.get_num_threads()))()
    factor = None if factor is None else factor.contiguous()
    if running is None:
        kept = 0, 0, 0, 0, False, False
    else:
        low, high, share, count, _, update, use = running
        places = count.data_ptr(), low.data_ptr(), high.data_ptr(), share.data_ptr()
        kept = *places, update, use
    team.run(
        kernel.address,
        (
            *path.words,
            x.data_ptr(),
            elements.data_ptr(),
            scale.data_ptr(),
            0 if zero_point is None else zero_point.data_ptr(),
            0 if key is None or not noisy else key.data_ptr(),
            rounding.random_bits,
            ctypes.addressof(path.constants),
            0 if factor is None else factor.data_ptr(),
            math.prod(compact),
            ctypes.addressof(slots),
            type(rule) is AbsMax,
            format.signed,
            *kept,
        ),
        path.walk.size,
    )
    return Whole(elements, scale, zero_point, block)


@lru_cache(maxsize=4096)
def _plan(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    granularity: Granularity,
    format: Format,
    rounding: Rounding,
    overflow: Overflow | None,
    momentum: float | None,
    factor: tuple[int, ...] | None,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], Plan] | None:
    """Block size, shape and strides of the scales, plan.  momentum: of a running range; factor: a
    shape."""
    block = granularity.block_shape(shape)
    compact = compact_shape(shape, block)
    granules = math.prod(compact)
    if granules > 1 and (factor is not None or momentum is not None):
        return None
    cut = block
    if factor is not None:
        if len(factor) != len(shape):
            return None
        cut = tuple(
            1 if part > 1 else max(size, 1) for part, size in zip(factor, shape, strict=True)
        )
        if compact_shape(shape, cut) != factor:
            return None
    found = plan(dtype, shape, strides, cut, format, rounding, overflow, momentum or 0.0)
    if found is None or (granules > 1 and not is_granule_major(found.walk)):
        return None
    return block, compact, contiguous(compact), found
