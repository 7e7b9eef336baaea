"""The exact sums of a product of integers, their zero points taken out."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from quantizers import IntFormat, QTensor

from .engines.choice import choose
from .engines.engine import Engine
from .engines.geometry import resized
from .engines.task import Span, Task, holds
from .operands import PLACES, lifted
from .operations import Operand
from .plan import Sketch, sketches
from .product import Product

#: the engine of a product, and what it is asked
Served = tuple[Engine, Task]


def _span(q: Sketch) -> Span:
    assert isinstance(q.format, IntFormat)
    return Span(q.format.low, q.format.high)


def _direct_span(q: Sketch) -> Span:
    low, high = _span(q)
    return Span(low, high) if q.zero_point is None else Span(low - high, high - low)


def direct(q: QTensor) -> Tensor:
    """Integer elements without the zero point that they have."""
    assert q.zero_point is not None
    (known,) = sketches(q)
    dtype = torch.int16 if _direct_span(known).magnitude < 2**15 else torch.int32
    return q.elements.to(dtype) - q.spread(q.zero_point).to(dtype)


def _centre(q: Sketch) -> int:
    return 0 if q.zero_point is None else (sum(_span(q)) + 1) // 2


def _centred_span(q: Sketch) -> Span:
    low, high = _span(q)
    return Span(low - _centre(q), high - _centre(q))


def _centred(q: QTensor) -> Tensor:
    """Integer elements about 0, in no more bits than the format's."""
    (known,) = sketches(q)
    centre = _centre(known)
    if centre == 0:
        return q.elements
    if centre == 128 and q.elements.dtype == torch.uint8:
        return (q.elements ^ 128).view(torch.int8)
    narrow = torch.int8 if _centred_span(known).within(-128, 127) else torch.int32
    return (q.elements.to(torch.int32) - centre).to(narrow)


def _uniform(product: Product, operand: Operand, q: Sketch) -> bool:
    """Whether all terms of a sum have the same zero point."""
    if q.zero_point is None or math.prod(q.zero_point) == 1:
        return True
    varying = {axis for axis, size in enumerate(q.shape) if q.block[axis] < size}
    return varying <= product.axes(operand, len(q.shape))[0]


def tasks(product: Product, a: Sketch, b: Sketch) -> list[Task]:
    """The forms of a product of integers, in order of preference.

    A zero point is taken by the engine, or from products of ones with centred elements, or from
    the elements themselves, which widens them.
    """
    size = product.terms(a.shape, b.shape)
    calls = product.multiplications(a.shape, b.shape)
    spans = _direct_span(a), _direct_span(b)
    found = [Task(product, *size, *spans, sums=False, multiplications=calls)]
    if a.zero_point is not None or b.zero_point is not None:
        if _uniform(product, "a", a) and _uniform(product, "b", b):
            spans = _centred_span(a), _centred_span(b)
            found.insert(0, Task(product, *size, *spans, multiplications=calls))
        if b.zero_point is None and a.zero_point is not None and math.prod(a.zero_point) == 1:
            found.insert(0, replace(found[-1], a=_span(a), b=_span(b), zero_point=True))
    return found


def corrected(
    served: Served, a: QTensor, b: QTensor, like: Tensor, engines: tuple[Engine, ...]
) -> Tensor:
    """The exact integer sums, zero points taken out by products of ones.

    With z the zero point less the centre, and a, b about their centres:
    sum (a - z_a)(b - z_b) = sum a b - z_a sum 1 b - z_b sum a 1 + z_a z_b sum 1 1, where ones have
    one entry along the axes that the product keeps, and meet the same padding.
    """
    engine, task = served
    product = task.product
    left, right = _centred(a), _centred(b)
    total = engine.product(task, left, right, like)
    # |a| + |z| is at most twice the larger half of the format
    widths = [2 * max(span.magnitude, 1) for span in (task.a, task.b)]
    dtype = holds(task.terms * widths[0] * widths[1])
    total = total.to(dtype)
    operands = list(zip(PLACES, (a, b), strict=True))
    ones = [
        q.elements.new_ones(product.ones(operand, q.elements.shape), dtype=torch.int8)
        for operand, q in operands
    ]
    shifts = [
        None if q.zero_point is None
        else lifted(product, operand, q, q.zero_point - _centre(*sketches(q))).to(dtype)
        for operand, q in operands
    ]  # fmt: skip

    def add(left: Tensor, right: Tensor, a: Span, b: Span, factor: Tensor) -> None:
        nonlocal total
        calls = product.multiplications(left.shape, right.shape)
        own = Task(product, task.count, task.per_index, a, b, multiplications=calls)
        unit, own = choose([own], left.device.type, engines)
        part = unit.product(own, left, right, resized(product, like, left, right)).to(dtype)
        each, channels = product.operation.groups, total.shape[1]
        if each > 1 and product.kind != "grad_weight" and part.shape[1] != channels:
            part = part.repeat_interleave(channels // each, 1)  # one a group
        total = total + factor * part

    one = Span(1, 1)
    if shifts[0] is not None:
        add(ones[0], right, one, task.b, -shifts[0])
    if shifts[1] is not None:
        add(left, ones[1], task.a, one, -shifts[1])
    if shifts[0] is not None and shifts[1] is not None:
        add(ones[0], ones[1], one, one, shifts[0] * shifts[1])
    return total
