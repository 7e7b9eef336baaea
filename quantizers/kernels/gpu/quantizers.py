"""Quantizers of CUDA tensors by Triton kernels, or None where none serves."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers.formats import Format
from quantizers.qtensor import QTensor
from quantizers.ranges import AbsMax, ChunkedMinMax, MinMax, State
from quantizers.rounding import Rounding, nearest_even
from quantizers.running_range import Ema
from quantizers.settings import Settings

from . import chunks, extremes
from . import elements as given
from .device import serves

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
    by = given.elements(
        x.dtype, x.shape, x.stride(), block, format, rounding, scale is not None,
        zero_point is not None,
    )  # fmt: skip
    kinds = (scale, torch.float32), (zero_point, torch.int32)
    if by is None or any(
        t is not None and (t.dtype is not dtype or t.shape != by.plan.compact) for t, dtype in kinds
    ):
        return None
    scale = None if scale is None else scale.contiguous()
    return by(x, scale, None if zero_point is None else zero_point.contiguous(), key)


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
    rule = by.range
    kept: tuple[Tensor, ...] = ()
    if type(rule) is Ema and rule.use == "current" and state is not None:
        kept = tuple(state[name] for name in rule.memory)
        rule = rule.rule
        for part, dtype in zip(kept, _MEMORY, strict=True):
            if part.dtype is not dtype or part.numel() != 1:
                return None
    if not by.rounding.random_bits:
        key = None
    elif not _is_key(key):
        return None
    if (
        type(rule) not in (AbsMax, MinMax, ChunkedMinMax)
        or by._spec is None
        or not by._plain
        or (factor is not None and factor.dtype is not torch.float32)
        or not serves(x, key, factor, *kept)
    ):
        return None
    plan = chunks.whole if type(rule) is ChunkedMinMax else extremes.whole
    found = plan(
        x.dtype, x.shape, x.stride(), by._spec, bool(kept), training,
        None if factor is None else factor.shape,
    )  # fmt: skip
    if found is None:
        return None
    made = found(x, None if factor is None else factor.contiguous(), key, kept)
    return QTensor(*made, by.format, found.block)
