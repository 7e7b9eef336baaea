"""Quantizers of CUDA tensors by Triton kernels, or None where none serves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quantizers.formats import Format, fp32
from quantizers.granularity import compact_shape
from quantizers.qtensor import QTensor
from quantizers.ranges import AbsMax, MinMax, State
from quantizers.rounding import Rounding, nearest_even
from quantizers.running_range import Ema
from quantizers.settings import Settings

from .device import serves
from .launch import Running, granule_major, make, measure, path

#: of a running range: low, high, share, steps
_MEMORY = (torch.float32,) * 3 + (torch.int64,)


def _is_key(key: Tensor | None) -> bool:
    return key is not None and key.dtype is torch.int64 and not key.dim()


def elements(
    x: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    block: tuple[int, ...],
    format: Format,
    rounding: Rounding = nearest_even,
    key: Tensor | None = None,
) -> Tensor | None:
    """See steps.elements_of."""
    key = key if rounding.random_bits else None
    if (rounding.random_bits and not _is_key(key)) or not serves(x, scale, zero_point, key):
        return None
    compact = compact_shape(x.shape, block)
    kinds = (scale, torch.float32), (zero_point, torch.int32)
    if any(t is not None and (t.dtype is not dtype or t.shape != compact) for t, dtype in kinds):
        return None
    found = path(x.dtype, x.shape, x.stride(), block, format, rounding, scale is not None)
    if found is None:
        return None
    scale = None if scale is None else scale.contiguous()
    return make(x, found, scale, None if zero_point is None else zero_point.contiguous(), None, key)


def whole(
    x: Tensor,
    by: Settings,
    state: State | None,
    key: Tensor | None,
    training: bool,
    factor: Tensor | None = None,
) -> QTensor | None:
    """See steps.quantize: by extremes, of a tensor or of granules that are runs in memory."""
    rule, running = by.range, None
    if isinstance(rule, Ema) and state is not None:
        low, high, share, steps = (state[name] for name in rule.memory)
        use = not training or rule.train_on != "batch"
        running = Running(low, high, share, steps, rule.momentum, training, use)
        rule = rule.rule
    kept = () if running is None else running[:4]
    key = key if by.rounding.random_bits else None
    if (
        type(rule) not in (AbsMax, MinMax)
        or by.scale_format not in (fp32,)
        or 0 in x.shape
        or any(part.numel() != 1 for part in kept)
        or any(part.dtype is not dtype for part, dtype in zip(kept, _MEMORY, strict=False))
        or (factor is not None and factor.dtype is not torch.float32)
        or (by.rounding.random_bits and not _is_key(key))
        or not serves(x, key, factor, *kept)
    ):
        return None
    block = by.granularity.block_shape(x.shape)
    compact = compact_shape(x.shape, block)
    alone = math.prod(compact) == 1
    cut = block
    if factor is not None:
        sizes = zip(factor.shape, x.shape, strict=False)
        cut = tuple(1 if own > 1 else size for own, size in sizes)
        if factor.dim() != x.dim() or compact_shape(x.shape, cut) != tuple(factor.shape):
            return None
        factor = factor.contiguous()
    if not alone and (running is not None or factor is not None):
        return None
    found = path(x.dtype, x.shape, x.stride(), cut, by.format, by.rounding, True)
    granules = None if found is None else 1 if alone else granule_major(found, x.shape, block)
    if found is None or granules is None:
        return None
    symmetric = type(rule) is AbsMax
    scale, zero_point = measure(x, found, granules, by.format, symmetric, running, factor, compact)
    return QTensor(
        make(x, found, scale, zero_point, factor, key), scale, zero_point, by.format, block
    )
