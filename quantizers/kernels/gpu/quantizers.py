"""Quantizers of CUDA tensors by Triton kernels, or None where none serves."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from quantizers.devices.by_device import restored
from quantizers.formats import Format
from quantizers.qtensor import QTensor
from quantizers.ranges.rules import AbsMax, ChunkedMinMax, MinMax
from quantizers.rounding import Rounding, nearest_even

from ..whole import Planned, form
from . import blocks, chunks, extremes
from .device import serves
from .elements import Elements
from .elements import elements as elements_by
from .memory import memory_of


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
    multiplied: bool = False,
) -> Tensor | None:
    """See steps.elements_of."""
    key = key if rounding.random_bits else None
    unkeyed = bool(rounding.random_bits) and not _is_key(key)
    if unkeyed or not serves(x, scale, zero_point, key):
        return None
    by = elements_by(
        x.dtype, x.shape, x.stride(), block, format, rounding, scale is not None,
        zero_point is not None, multiplied,
    )  # fmt: skip
    kinds = (scale, torch.float32), (zero_point, torch.int32)
    if by is None or any(
        t is not None and (t.dtype is not dtype or t.shape != by.plan.compact) for t, dtype in kinds
    ):
        return None
    scale = None if scale is None else scale.contiguous()
    return by(x, scale, None if zero_point is None else zero_point.contiguous(), key)


class _Rounded(NamedTuple):
    """A quantizer without a range: see whole.Planned."""

    elements: Elements
    format: Format

    def __call__(
        self, x: Tensor, factor: Tensor | None, key: Tensor | None, running: tuple[Tensor, ...]
    ) -> QTensor:
        """factor: None; running: nothing."""
        return QTensor(self.elements(x, None, None, key), format=self.format, block=(*x.shape,))


@lru_cache(maxsize=4096)
def _whole(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    spec: str,
    running: bool,
    training: bool,
    factor: tuple[int, ...] | None,
) -> Planned | None:
    """For a quantizer's `spec`: without a range, or by extremes of a tensor, or its chunks, or of
    granules that are runs in memory.  factor: its shape.  None where no kernel serves."""
    by = restored(spec)
    if by.range is None:
        found = elements_by(dtype, shape, strides, shape, by.format, by.rounding, False, False)
        return None if found is None or factor is not None else _Rounded(found, by.format)
    if by.granularity.of == "product" and not running and factor is None:
        return blocks.whole(dtype, shape, strides, spec)
    rule = memory_of(by.range, running, training).rule
    if type(rule) not in (AbsMax, MinMax, ChunkedMinMax):
        return None
    plan = chunks.whole if type(rule) is ChunkedMinMax else extremes.whole
    return plan(dtype, shape, strides, spec, running, training, factor)


#: see steps.quantize
whole = form(_whole, serves)
