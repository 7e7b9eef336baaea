"""The exact sums of a product of integers, their zero points taken out."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from quantizers import IntFormat, QTensor

from .engines.choice import choose
from .engines.engine import Engine
from .engines.geometry import resized
from .engines.task import Span, Task, holds
from .operands import PLACES, lifted
from .operations import Operand
from .plan import Sketch, planned, sketches
from .product import Product

#: the engine of a product, and what it is asked
Served = tuple[Engine, Task]


class _Spans(NamedTuple):
    """What an operand's integers can be: as they are, without their zero point, and about the
    centre of the format where they have one."""

    raw: Span
    direct: Span
    centred: Span
    centre: int

    @classmethod
    def of(cls, q: Sketch) -> _Spans:
        assert isinstance(q.format, IntFormat)
        low, high = raw = Span(q.format.low, q.format.high)
        if q.zero_point is None:
            return cls(raw, raw, raw, 0)
        centre = (low + high + 1) // 2
        direct, centred = Span(low - high, high - low), Span(low - centre, high - centre)
        return cls(raw, direct, centred, centre)


def direct(q: QTensor) -> Tensor:
    """Integer elements without the zero point that they have."""
    assert q.zero_point is not None
    spans = _Spans.of(*sketches(q))
    dtype = torch.int16 if spans.direct.magnitude < 2**15 else torch.int32
    return q.elements.to(dtype) - q.spread(q.zero_point).to(dtype)


def _centred(q: QTensor, spans: _Spans) -> Tensor:
    """Integer elements about 0, in no more bits than the format's."""
    if spans.centre == 0:
        return q.elements
    if spans.centre == 128 and q.elements.dtype == torch.uint8:
        return (q.elements ^ 128).view(torch.int8)
    narrow = torch.int8 if spans.centred.within(-128, 127) else torch.int32
    return (q.elements.to(torch.int32) - spans.centre).to(narrow)


def _uniform(product: Product, operand: Operand, q: Sketch) -> bool:
    """Whether all terms of a sum have the same zero point."""
    if q.zero_point is None or math.prod(q.zero_point) == 1:
        return True
    _, summed = product.axes(operand, len(q.shape))
    return all(q.block[axis] >= q.shape[axis] for axis in summed)


def tasks(product: Product, a: Sketch, b: Sketch) -> list[Task]:
    """The forms of a product of integers, in order of preference.

    Zero points are taken by the engine, or from products of ones with centred elements, or from
    the elements themselves, which widens them.
    """
    size = product.terms(a.shape, b.shape)
    calls = product.multiplications(a.shape, b.shape)
    one, other = _Spans.of(a), _Spans.of(b)

    def form(a: Span, b: Span, sums: bool = False, first: bool = False, both: bool = False) -> Task:
        return Task(product, *size, a, b, "exact", first, both, sums, calls)

    found = [form(one.direct, other.direct)]
    if a.zero_point is not None or b.zero_point is not None:
        if _uniform(product, "a", a) and _uniform(product, "b", b):
            found.insert(0, form(one.centred, other.centred, sums=True))
        if b.zero_point is None and a.zero_point is not None and math.prod(a.zero_point) == 1:
            found.insert(0, form(one.raw, other.raw, first=True))
        if all(math.prod(q.zero_point or ()) == 1 for q in (a, b)):
            found.insert(0, form(one.direct, other.direct, both=True))
    return found


@planned
def _ones(product: Product, operand: Operand, shape: torch.Size) -> list[int]:
    """`Product.ones`."""
    return product.ones(operand, shape)


@planned
def _of_ones(
    task: Task,
    one: Span,
    other: Span,
    a: torch.Size,
    b: torch.Size,
    device_type: str,
    engines: tuple[Engine, ...],
) -> Served:
    """What serves the same product of operands with these spans and shapes."""
    calls = task.product.multiplications(a, b)
    own = Task(task.product, task.count, task.per_index, one, other, multiplications=calls)
    return choose([own], device_type, engines)


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
    # |a| + |z| is at most twice the larger half of the format
    widths = [2 * max(span.magnitude, 1) for span in (task.a, task.b)]
    dtype = holds(task.terms * widths[0] * widths[1])
    # of each operand: itself, and the ones that its zero point multiplies; what they can be
    choices: list[list[tuple[Tensor, Span, Tensor | None]]] = []
    for operand, q, span in zip(PLACES, (a, b), (task.a, task.b), strict=True):
        spans = _Spans.of(*sketches(q))
        choices.append([(_centred(q, spans), span, None)])
        if q.zero_point is not None:
            shape = _ones(product, operand, q.elements.shape)
            ones = q.elements.new_ones(shape, dtype=torch.int8)
            shift = lifted(product, operand, q, spans.centre - q.zero_point).to(dtype)
            choices[-1].append((ones, Span(1, 1), shift))
    (left, _, _), (right, _, _) = choices[0][0], choices[1][0]
    total = engine.product(task, left, right, like).to(dtype)
    for (left, one, shift_a), (right, other, shift_b) in itertools.product(*choices):
        shifts = [shift for shift in (shift_a, shift_b) if shift is not None]
        if not shifts:
            continue
        of = one, other, left.shape, right.shape
        unit, own = _of_ones(task, *of, left.device.type, engines)
        part = unit.product(own, left, right, resized(product, like, left, right)).to(dtype)
        groups, channels = product.operation.groups, total.shape[1]
        if groups > 1 and product.kind != "grad_weight" and part.shape[1] != channels:
            part = part.repeat_interleave(channels // groups, 1)  # one a group
        total = total + (shifts[0] if len(shifts) == 1 else shifts[0] * shifts[1]) * part
    return total
