"""What a quantizer computes, range, scale, elements, by torch's own operations or faster."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import tensor_checks
from .devices.by_device import ByDevice, laid_out_like, restored
from .elements import as_real as as_real
from .elements import elements_of as elements_of
from .formats import IntFormat
from .granularity import compact_shape
from .kernels import quantize as kernels
from .kernels.gpu import quantizers as gpu
from .qtensor import QTensor
from .ranges.rules import Range, RangeRule, State
from .scales.levels import elements_by, outer_shape, step_of
from .scales.rules import scale_of
from .settings import Settings


def range_of(
    x: Tensor, rule: RangeRule, block: Sequence[int], state: State | None, training: bool
) -> Range:
    """(low, high) of each block of x by a range rule: fp32, finite where the block's elements are.

    state: the rule's own, which it moves on when `training`.
    """
    if x.dtype == torch.float64:  # what is finite there has a finite range in fp32
        most = torch.finfo(torch.float32).max
        x = torch.where(torch.isinf(x), x, x.clamp(-most, most))
    if state is not None:
        state = _by_block(state, compact_shape(x.shape, block))
    return rule(x, block, state=state, training=training)


def _by_block(state: State, compact: tuple[int, ...]) -> State:
    """The state as `init_state(compact)` makes it: the same memory, for an x with more axes than
    the state was made for (a layer's leading ones)."""
    return {
        name: value.view(compact)
        if value.dim() not in (0, len(compact)) and value.numel() == math.prod(compact)
        else value
        for name, value in state.items()
    }


def measured(
    x: Tensor,
    by: Settings,
    block: tuple[int, ...],
    state: State | None,
    training: bool,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Scale, zero point and outer scale of each block of x, from its range, which moves on when
    `training`: see QTensor.

    Only for a quantizer with a range; without one there is no scale.
    """
    assert by.range is not None
    low, high = range_of(x, by.range, block, state, training)
    if by.scale.simple:
        return *scale_of(low, high, by.format, by.scale, key), None
    scale, outer, _ = step_of(x, low, high, by, block, key)
    return scale, None, outer


def _quantize(
    x: Tensor,
    by: Settings,
    state: State | None,
    key: Tensor | None,
    training: bool,
    factor: Tensor | None = None,
) -> QTensor:
    """What a quantizer makes of x, or of x * factor.  Not looked at but for x: arguments that a
    layer made itself, at every step, or that `Quantizer` has checked."""
    x = tensor_checks.real(x).detach()  # no graph grows through elements, scales or the state
    x = x if factor is None else x * factor
    if by.granularity.of == "flat" and x.dim() != 1:
        q = quantize(x.reshape(-1), by, state, key, training)
        return q._replace(elements=q.elements.view(x.shape))
    if by.range is None:
        # one block
        block = tuple(x.shape) if x.numel() else by.granularity.block_shape(x.shape)
        elements = elements_of(x, None, None, block, by.format, by.rounding, key)
        return QTensor(elements, None, None, by.format, block)
    block = by.granularity.block_shape(x.shape)
    low, high = range_of(x, by.range, block, state, training)
    if by.scale.simple:
        scale, zero_point = scale_of(low, high, by.format, by.scale, key)
        elements = elements_of(x, scale, zero_point, block, by.format, by.rounding, key)
        return QTensor(elements, scale, zero_point, by.format, block)
    step = step_of(x, low, high, by, block, key)
    elements = elements_by(x, step, by, block, by.rounding, key)
    return QTensor(elements, step.scale, None, by.format, block, step.outer)


quantize = ByDevice(_quantize, cpu=kernels.whole, cuda=gpu.whole)


# As one operation of a graph, which holds it as a string: taken apart, a quantizer is dozens of
# operations, slow to compile and, where it reduces or draws noise, slower than its own kernel.


def _as_operation(
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
    elements, scale, zero_point, outer = torch.ops.quantizers.quantize(
        x.detach(), key, factor, list(state), list(state.values()), training, by._spec
    )
    return QTensor(
        elements,
        None if by.range is None else scale,
        zero_point if by.affine else None,
        by.format,
        by.granularity.block_shape(x.shape),
        outer if by.scale.outer else None,
    )


def _run(
    x: Tensor,
    key: Tensor | None,
    factor: Tensor | None,
    names: list[str],
    memory: list[Tensor],
    training: bool,
    spec: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """names, memory: the quantizer's state.
    -> elements, laid out as empty_like(x), scale, zero point and outer scale (empty where there is
    none)."""
    state = dict(zip(names, memory, strict=True)) or None
    q = quantize.computed(x, restored(spec), state, key, training, factor)
    kinds = (q.scale, torch.float32), (q.zero_point, torch.int32), (q.outer, torch.float32)
    parts = [
        x.new_empty(0, dtype=dtype) if part is None else part.contiguous() for part, dtype in kinds
    ]
    return laid_out_like(q.elements, x), parts[0], parts[1], parts[2]


def _shapes(x: Tensor, *others: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    by: Settings = restored(str(others[-1]))
    integer = isinstance(by.format, IntFormat)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    seen = torch.Size(by.granularity.seen(x.shape))  # type: ignore[arg-type]
    block = by.granularity.block_shape(seen)
    shape = [0] if by.range is None else list(compact_shape(seen, block))
    return (
        torch.empty_like(x, dtype=by.format.dtype if integer else wide),
        x.new_empty(shape, dtype=torch.float32),
        x.new_empty(shape if by.affine else [0], dtype=torch.int32),
        x.new_empty(outer_shape(seen, block, by.scale), dtype=torch.float32),
    )


quantize.in_graphs(
    "quantizers::quantize(Tensor x, Tensor? key, Tensor? factor, str[] names,"
    " Tensor(a!)[] memory, bool training, str spec) -> (Tensor, Tensor, Tensor, Tensor)",
    _run, _shapes, _as_operation,
)  # fmt: skip
