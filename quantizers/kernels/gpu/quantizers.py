"""Quantizers of CUDA tensors by Triton kernels, or None where none serves."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers.formats import Format, fp32
from quantizers.qtensor import QTensor
from quantizers.ranges import AbsMax, ChunkedMinMax, MinMax, State
from quantizers.rounding import Rounding, nearest_even
from quantizers.running_range import Ema
from quantizers.settings import Settings

from ..plan import plan_whole
from . import chunks
from .device import serves
from .launch import Running, make, measure, path

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
    found = path(x.dtype, x.shape, x.stride(), block, format, rounding, scale is not None)
    kinds = (scale, torch.float32), (zero_point, torch.int32)
    if found is None or any(
        t is not None and (t.dtype is not dtype or t.shape != found.plan.compact)
        for t, dtype in kinds
    ):
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
    """See steps.quantize: by extremes, of a tensor, or its chunks, or of granules that are runs in
    memory."""
    rule, running = by.range, None
    if isinstance(rule, Ema) and state is not None:
        low, high, share, steps = (state[name] for name in rule.memory)
        use = not training or rule.train_on != "batch"
        running = Running(low, high, share, steps, rule.momentum, training, use)
        rule = rule.rule
    kept = () if running is None else running[:4]
    key = key if by.rounding.random_bits else None
    if (
        type(rule) not in (AbsMax, MinMax, ChunkedMinMax)
        or by.scale_format not in (fp32,)
        or any(part.numel() != 1 for part in kept)
        or any(part.dtype is not dtype for part, dtype in zip(kept, _MEMORY, strict=False))
        or (factor is not None and factor.dtype is not torch.float32)
        or (by.rounding.random_bits and not _is_key(key))
        or not serves(x, key, factor, *kept)
    ):
        return None
    known = plan_whole(
        x.dtype, x.shape, x.stride(), by.granularity, by.format, by.rounding,
        None if running is None else running.momentum, None if factor is None else factor.shape,
    )  # fmt: skip
    if known is None:
        return None
    found = path(x.dtype, x.shape, x.stride(), known.cut, by.format, by.rounding, True)
    if found is None:
        return None
    factor = None if factor is None else factor.contiguous()
    if isinstance(rule, ChunkedMinMax):
        if factor is not None:
            return None
        measured = chunks.measure(x, found, known, by.format, rule.chunks, running)
        if measured is None:
            return None
        scale, zero_point = measured
    else:
        symmetric = type(rule) is AbsMax
        scale, zero_point = measure(x, found, known, by.format, symmetric, running, factor)
    made = make(x, found, scale, zero_point, factor, key)
    return QTensor(made, scale, zero_point, by.format, known.block)
