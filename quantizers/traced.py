"""A quantizer as one operation of a graph that torch.compile makes.

Taken apart, a quantizer is dozens of operations, slow to compile and, where it reduces or draws
noise, slower than its own kernel.  The operation holds the quantizer as a string and calls it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import tensor_checks
from .by_device import laid_out_like, restored
from .formats import IntFormat
from .granularity import compact_shape
from .qtensor import QTensor
from .ranges import State
from .settings import Settings

SCHEMA = (
    "quantizers::quantize(Tensor x, Tensor? key, Tensor? factor, str[] names, Tensor(a!)[] memory,"
    " bool training, str spec) -> (Tensor, Tensor, Tensor)"
)


def quantized(
    x: Tensor,
    by: Settings,
    state: State | None,
    key: Tensor | None,
    training: bool,
    factor: Tensor | None = None,
) -> QTensor | None:
    """What a quantizer makes of x, as one operation; None for one that has no pickle."""
    tensor_checks.real(x)
    if by._spec is None:
        return None
    state = state or {}
    elements, scale, zero_point = torch.ops.quantizers.quantize(
        x.detach(), key, factor, list(state), list(state.values()), training, by._spec
    )
    return QTensor(
        elements,
        None if by.range is None else scale,
        zero_point if by.affine else None,
        by.format,
        by.granularity.block_shape(x.shape),
    )


def run(
    x: Tensor,
    key: Tensor | None,
    factor: Tensor | None,
    names: list[str],
    memory: list[Tensor],
    training: bool,
    spec: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """names, memory: the quantizer's state.
    -> elements, laid out as empty_like(x), scale and zero point (empty where there is none)."""
    state = dict(zip(names, memory, strict=True)) or None
    q = restored(spec)(x, state=state, key=key, training=training, factor=factor)
    scale = x.new_empty(0, dtype=torch.float32) if q.scale is None else q.scale.contiguous()
    none = x.new_empty(0, dtype=torch.int32)
    elements = laid_out_like(q.elements, x)
    return elements, scale, none if q.zero_point is None else q.zero_point.contiguous()


def shapes(x: Tensor, *others: object) -> tuple[Tensor, Tensor, Tensor]:
    by: Settings = restored(str(others[-1]))
    integer = isinstance(by.format, IntFormat)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    compact = compact_shape(x.shape, by.granularity.block_shape(x.shape))
    shape = [0] if by.range is None else list(compact)
    return (
        torch.empty_like(x, dtype=by.format.dtype if integer else wide),
        x.new_empty(shape, dtype=torch.float32),
        x.new_empty(shape if by.affine else [0], dtype=torch.int32),
    )
