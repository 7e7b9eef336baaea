"""What a quantizer computes, range, scale, elements, by torch's own operations or faster."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import tensor_checks
from .by_device import ByDevice, laid_out_like, restored
from .formats import FloatFormat, Format, IntFormat, fp32
from .granularity import compact_shape, expand
from .kernels import quantize as kernels
from .kernels.gpu import quantizers as gpu
from .noise import random_bits
from .numbers import divided
from .qtensor import QTensor
from .ranges import Range, RangeRule, State
from .rounding import Rounding, nearest_even, round_to_float
from .settings import Settings


def as_real(x: Tensor) -> Tensor:
    """x in the dtype it is quantized from: fp32 for half precision (exact), fp64 stays fp64."""
    return x if x.dtype == torch.float64 else x.float()


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


def scale_of(
    low: Tensor,
    high: Tensor,
    format: Format,
    scale_format: FloatFormat = fp32,
    scale_rounding: Rounding = nearest_even,
) -> tuple[Tensor, Tensor | None]:
    """Scale (fp32) and zero point (int32; None for a symmetric format) that spread each range over
    the format: see Quantizer.

    low, high: fp32, one entry a block.  A range of zeros has scale 0, a non-finite one a
    non-finite scale.
    """
    affine = isinstance(format, IntFormat) and not format.symmetric
    if affine:
        assert isinstance(format, IntFormat)
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        half = high * 0.5 - low * 0.5  # in halves, whose difference passes no end of fp32
        scale = divided(half, (format.high - format.low) / 2)
    else:
        if format.signed:
            width = torch.maximum(low.abs(), high.abs())
        else:  # low is clipped, but a non-finite one must still be seen
            width = torch.where(torch.isfinite(low), high.clamp(min=0.0), float("nan"))
        scale = divided(width, format.largest)
        if format.largest < 1:  # what passes fp32 here is no infinity
            beyond = torch.isinf(scale) & torch.isfinite(width)
            scale = torch.where(beyond, torch.finfo(scale.dtype).max, scale)
    if scale_format != fp32:
        limit = scale_format.when_clipped
        rounded = round_to_float(scale, scale_format, scale_rounding, overflow=limit)
        scale = torch.where(scale == 0, scale, rounded)
    if not affine:
        return scale, None
    assert isinstance(format, IntFormat)
    divisor = torch.where(scale == 0, float("inf"), scale)
    zero_point = format.low - torch.round(low / divisor)
    zero_point = zero_point.clamp(format.low, format.high)
    return scale, torch.nan_to_num(zero_point).to(torch.int32)


def _elements_of(
    x: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    block: tuple[int, ...],
    format: Format,
    rounding: Rounding = nearest_even,
    key: Tensor | None = None,
) -> Tensor:
    """round(x / scale) + zero_point, clamped to the format: see Quantizer.

    x: fp16, bf16, fp32 or fp64; scale, zero_point: one entry a block, None for 1 and for 0; key:
    0-d int64, for a stochastic rounding.  -> the format's integer dtype, or for a FloatFormat fp32
    (fp64 for fp64 x), x's shape.
    """
    scaled = x = as_real(x)
    if scale is not None:
        # x / inf = 0: where the scale is zero, so is every element, without a branch
        divisor = torch.where(scale == 0, float("inf"), scale)
        scaled = x / expand(divisor, x.shape, block)
    bits = None if key is None or not rounding.random_bits else random_bits(key, x.shape)
    if isinstance(format, FloatFormat):
        overflow = None if scale is None else format.when_clipped
        return round_to_float(scaled, format, rounding, bits, overflow=overflow, source=x)
    elements = rounding(scaled, bits)
    if zero_point is not None:
        elements = elements + expand(zero_point, x.shape, block)
    elements = elements.clamp_(format.low, format.high)
    # what a NaN is as an integer depends on the processor; the scale tells of it
    return elements.nan_to_num_(0.0).to(format.dtype)


elements_of = ByDevice(_elements_of, cpu=kernels.elements, cuda=gpu.elements)


def measured(
    x: Tensor, by: Settings, block: Sequence[int], state: State | None, training: bool
) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point of each block of x, from its range, which moves on when `training`.

    Only for a quantizer with a range; without one there is no scale.
    """
    assert by.range is not None
    low, high = range_of(x, by.range, block, state, training)
    return scale_of(low, high, by.format, by.scale_format, by.scale_rounding)


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
    scale = zero_point = None
    if by.range is None and x.numel():  # one block
        block = tuple(x.shape)
    else:
        block = by.granularity.block_shape(x.shape)
    if by.range is not None:
        scale, zero_point = measured(x, by, block, state, training)
    elements = elements_of(x, scale, zero_point, block, by.format, by.rounding, key)
    return QTensor(elements, scale, zero_point, by.format, block)


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


def _run(
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
    q = quantize.computed(x, restored(spec), state, key, training, factor)
    scale = x.new_empty(0, dtype=torch.float32) if q.scale is None else q.scale.contiguous()
    none = x.new_empty(0, dtype=torch.int32)
    elements = laid_out_like(q.elements, x)
    return elements, scale, none if q.zero_point is None else q.zero_point.contiguous()


def _shapes(x: Tensor, *others: object) -> tuple[Tensor, Tensor, Tensor]:
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


quantize.in_graphs(
    "quantizers::quantize(Tensor x, Tensor? key, Tensor? factor, str[] names,"
    " Tensor(a!)[] memory, bool training, str spec) -> (Tensor, Tensor, Tensor)",
    _run, _shapes, _as_operation,
)  # fmt: skip
