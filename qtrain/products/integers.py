"""The exact sums of a product of integers, their zero points taken out."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from quantizers import IntFormat, QTensor

from .convolution import Convolution
from .engines.choice import choose
from .engines.engine import Engine, Span, Work, holds
from .engines.geometry import resized
from .operands import PLACES, lifted
from .operations import BatchedMatmul, Kind, Operand, Operation
from .plan import Sketch, planned, sketch


def _ones(operation: Operation, kind: Kind, operand: Operand, x: Tensor) -> Tensor:
    """An operand of ones, a single one along every axis that only it has among those kept."""
    kept = operation.kept(kind, operand, x.dim())
    sizes = [1 if axis in kept else size for axis, size in enumerate(x.shape)]
    if isinstance(operation, BatchedMatmul):
        sizes[0] = x.shape[0]
    elif isinstance(operation, Convolution) and (kind == "grad_weight" or operand == "b"):
        sizes[int(kind == "grad_weight")] = operation.groups
    return x.new_ones(sizes, dtype=torch.int8)


def _spread(operation: Operation, ones: Tensor, total: Tensor) -> Tensor:
    """A product with an operand of ones, broadcastable to the whole product."""
    if not isinstance(operation, Convolution) or ones.dim() > len(operation.stride) + 2:
        return ones
    if ones.shape[1] in (1, total.shape[1]):
        return ones
    return ones.repeat_interleave(total.shape[1] // ones.shape[1], 1)  # one a group


def _span(q: Sketch) -> Span:
    assert isinstance(q.format, IntFormat)
    return Span(q.format.low, q.format.high)


def _direct_span(q: Sketch) -> Span:
    low, high = _span(q)
    return Span(low, high) if q.zero_point is None else Span(low - high, high - low)


def direct(q: QTensor) -> Tensor:
    """Integer elements without the zero point that they have."""
    assert q.zero_point is not None
    dtype = torch.int16 if _direct_span(sketch(q)).magnitude < 2**15 else torch.int32
    return q.elements.to(dtype) - q.spread(q.zero_point).to(dtype)


def _centre(q: Sketch) -> int:
    return 0 if q.zero_point is None else (sum(_span(q)) + 1) // 2


def _centred_span(q: Sketch) -> Span:
    low, high = _span(q)
    return Span(low - _centre(q), high - _centre(q))


def _centred(q: QTensor) -> Tensor:
    """Integer elements about 0, in no more bits than the format's."""
    known = sketch(q)
    centre = _centre(known)
    if centre == 0:
        return q.elements
    if centre == 128 and q.elements.dtype == torch.uint8:
        return (q.elements ^ 128).view(torch.int8)
    narrow = torch.int8 if _centred_span(known).within(-128, 127) else torch.int32
    return (q.elements.to(torch.int32) - centre).to(narrow)


def _uniform(operation: Operation, kind: Kind, operand: Operand, q: Sketch) -> bool:
    """Whether all terms of a sum have the same zero point."""
    if q.zero_point is None or math.prod(q.zero_point) == 1:
        return True
    varying = {axis for axis, size in enumerate(q.shape) if q.block[axis] < size}
    return varying <= operation.kept(kind, operand, len(q.shape))


#: the engine of a product, and how it takes the zero points
Served = tuple[Engine, Work]


@planned
def serving(
    operation: Operation,
    kind: Kind,
    a: Sketch,
    b: Sketch,
    device_type: str,
    engines: tuple[Engine, ...],
) -> Served | None:
    """What serves a product of integers; None for others.

    A zero point is taken by the engine, or from products of ones with centred elements, or from
    the elements themselves, which widens them: whichever the first engine supports, in this order.
    """
    if not isinstance(a.format, IntFormat) or not isinstance(b.format, IntFormat):
        return None
    size = operation.terms(kind, a.shape, b.shape)
    calls = operation.multiplications(kind, a.shape, b.shape)
    forms = [Work(*size, _direct_span(a), _direct_span(b), sums=False, multiplications=calls)]
    if a.zero_point is not None or b.zero_point is not None:
        if _uniform(operation, kind, "a", a) and _uniform(operation, kind, "b", b):
            spans = _centred_span(a), _centred_span(b)
            forms.insert(0, Work(*size, *spans, multiplications=calls))
        if b.zero_point is None and a.zero_point is not None and math.prod(a.zero_point) == 1:
            forms.insert(0, replace(forms[-1], a=_span(a), b=_span(b), zero_point=True))
    return choose(operation, kind, forms, device_type, engines)


def corrected(
    operation: Operation,
    kind: Kind,
    a: QTensor,
    b: QTensor,
    like: Tensor,
    engines: tuple[Engine, ...],
    engine: Engine,
    work: Work,
) -> Tensor:
    """The exact integer sums, zero points taken out by products of ones.

    With z the zero point less the centre, and a, b about their centres:
    sum (a - z_a)(b - z_b) = sum a b - z_a sum 1 b - z_b sum a 1 + z_a z_b sum 1 1, where ones have
    one entry along the axes that the product keeps, and meet the same padding.
    """
    left, right = _centred(a), _centred(b)
    total = engine.product(operation, kind, left, right, like, work)
    # |a| + |z| is at most twice the larger half of the format
    widths = [2 * max(span.magnitude, 1) for span in (work.a, work.b)]
    dtype = holds(work.count * work.per_index * widths[0] * widths[1])
    total = total.to(dtype)
    operands = list(zip(PLACES, (a, b), strict=True))
    ones = [_ones(operation, kind, operand, q.elements) for operand, q in operands]
    shifts = [
        None if q.zero_point is None
        else lifted(operation, kind, operand, q, q.zero_point - _centre(sketch(q))).to(dtype)
        for operand, q in operands
    ]  # fmt: skip

    def add(left: Tensor, right: Tensor, a: Span, b: Span, factor: Tensor) -> None:
        nonlocal total
        calls = operation.multiplications(kind, left.shape, right.shape)
        forms = [Work(work.count, work.per_index, a, b, multiplications=calls)]
        unit, chosen = choose(operation, kind, forms, left.device.type, engines)
        shape = resized(operation, kind, like, left, right)
        part = unit.product(operation, kind, left, right, shape, chosen).to(dtype)
        total = total + factor * _spread(operation, part, total)

    one = Span(1, 1)
    if shifts[0] is not None:
        add(ones[0], right, one, work.b, -shifts[0])
    if shifts[1] is not None:
        add(left, ones[1], work.a, one, -shifts[1])
    if shifts[0] is not None and shifts[1] is not None:
        add(ones[0], ones[1], one, one, shifts[0] * shifts[1])
    return total
