"""Quantizers for CUDA tensors, or None where no kernel serves them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quantizers import memory
from quantizers.formats import FloatFormat, Format, Overflow
from quantizers.granularity import Granularity, compact_shape
from quantizers.ranges import AbsMax, MinMax, RangeRule, State
from quantizers.rounding import Rounding
from quantizers.running_range import Ema

from .launch import INTERPRETED, Running, granule_major, make, measure, path, unshift

_DEVICE = "cpu" if INTERPRETED else "cuda"


def serves(x: Tensor, *others: Tensor | None) -> bool:
    """Whether kernels may read x and the others, which lie on its device."""
    rest = [other for other in others if other is not None]
    return memory.serves(x, *rest, device_type=_DEVICE) and all(
        other.device == x.device for other in rest
    )


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
    """See kernels.elements."""
    noisy = rounding.random_bits > 0
    if not serves(x, scale, zero_point, key if noisy else None):
        return None
    compact = compact_shape(x.shape, block)
    if (
        (noisy and (key is None or key.dtype is not torch.int64 or key.dim()))
        or (scale is not None and (scale.dtype is not torch.float32 or scale.shape != compact))
        or (zero_point is not None and (zero_point.shape != compact or scale is None))
    ):
        return None
    found = path(x.dtype, x.shape, x.stride(), block, format, rounding, overflow)
    if found is None:
        return None
    scale = None if scale is None else scale.contiguous()
    zero_point = None if zero_point is None else zero_point.contiguous()
    return make(x, found, scale, zero_point, None, key if noisy else None)


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
) -> tuple[Tensor, Tensor, Tensor | None, tuple[int, ...]] | None:
    """Elements, scale, zero point, block.  See kernels.whole."""
    running = None
    if isinstance(rule, Ema) and state is not None:
        running = Running(
            state["low"], state["high"], state["share"], state["steps"],
            rule.momentum, training, not (training and rule.train_on == "batch"),
        )  # fmt: skip
        rule = rule.rule
    noisy = rounding.random_bits > 0
    kept = () if running is None else running[:4]
    key = key if noisy else None
    if type(rule) not in (AbsMax, MinMax) or not serves(x, key, factor, *kept):
        return None
    if noisy and (key is None or key.dtype is not torch.int64 or key.dim()):
        return None
    if any(part.numel() != 1 for part in kept) or 0 in x.shape:
        return None
    block = granularity.block_shape(x.shape)
    compact = compact_shape(x.shape, block)
    alone = math.prod(compact) == 1
    if not alone and (running is not None or factor is not None):
        return None
    cut = block
    if factor is not None:
        cut = tuple(1 if n > 1 else max(size, 1) for n, size in zip(factor.shape, x.shape))
        if factor.dim() != x.dim() or compact_shape(x.shape, cut) != tuple(factor.shape):
            return None
        factor = factor.contiguous()
    overflow = format.when_clipped if isinstance(format, FloatFormat) else None
    found = path(x.dtype, x.shape, x.stride(), cut, format, rounding, overflow)
    granules = None if found is None else 1 if alone else granule_major(found, x.shape, block)
    if found is None or granules is None:
        return None
    symmetric = type(rule) is AbsMax
    scale, zero_point = measure(x, found, granules, format, symmetric, running, factor, compact)
    return make(x, found, scale, zero_point, factor, key), scale, zero_point, block


def unshifted(elements: Tensor, zero_point: Tensor | None) -> Tensor | None:
    """See kernels.unshifted."""
    if (
        not serves(elements, zero_point)
        or elements.is_floating_point()
        or not torch.ops.aten.is_non_overlapping_and_dense(elements)
        or not 0 < elements.numel() < 2**31
        or (zero_point is not None and zero_point.numel() != 1)
    ):
        return None
    return unshift(elements, zero_point)
