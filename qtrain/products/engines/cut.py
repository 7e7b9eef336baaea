"""Exact integer products beyond an int8 unit's operands and sums: of their bytes, in parts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..plan import planned
from ..product import Product
from .engine import Engine
from .geometry import resized
from .task import Span, Task

_BYTE = Span(-128, 127)
#: what 256 * high + low holds, both bytes of -128 .. 127
_TWO = Span(257 * _BYTE.low, 257 * _BYTE.high)


class _Cut(NamedTuple):
    """An operand as a sum of int8 operands, each times its factor.

    bytes    1, or 2: the higher counts 256
    offset   what all elements have beyond their bytes; its operand is of ones
    span     what a byte can be
    """

    bytes: int
    offset: int
    span: Span

    @property
    def factors(self) -> list[int]:
        return [256, 1][-self.bytes :] + ([self.offset] if self.offset else [])

    def operands(self, x: Tensor, axis: int, ones: int) -> list[Tensor]:
        """int8, one for each factor; that of ones has length `ones` along the axis."""
        if self.factors == [1]:
            return [x.to(torch.int8)]
        x = x.to(torch.promote_types(x.dtype, torch.int16))
        if self.bytes == 1:
            found = [(x - self.offset).to(torch.int8)]
        else:
            if self.offset != 128:
                x = x - (self.offset - 128)  # within 16 bits, as it is for 128
            found = [(x >> 8).to(torch.int8), (x & 255).sub_(128).to(torch.int8)]
        if self.offset:
            sizes = [ones if i == axis else size for i, size in enumerate(x.shape)]
            found.append(found[0].new_ones(sizes))
        return found


def _cut(span: Span) -> _Cut | None:
    """The fewest bytes for elements of a span; None where two are too few."""
    if span.within(*_BYTE):
        return _Cut(1, 0, span)
    for count, reach in enumerate((_BYTE, _TWO), 1):
        if span.within(*reach):
            return _Cut(count, 0, _BYTE)
        if span.high - span.low <= reach.high - reach.low:
            return _Cut(count, span.high - reach.high, _BYTE)
    return None


@dataclass(frozen=True)
class _Plan:
    """How a and b are cut; part: of the sum, of bytes' products, which int32 holds."""

    a: _Cut
    b: _Cut
    part: Task


@planned
def _plan(task: Task) -> _Plan | None:
    """None where elements take more than two bytes, or one index alone passes int32."""
    a, b = _cut(task.a), _cut(task.b)
    if a is None or b is None:
        return None
    one = task.per_index * max(a.span.magnitude, 1) * max(b.span.magnitude, 1)
    longest = (2**31 - 1) // max(one, 1)
    if longest == 0:
        return None
    count = task.count
    if count > longest:
        count = -(-count // -(-count // longest))
    return _Plan(a, b, replace(task, count=count, a=a.span, b=b.span, sums=True))


class CutInt8(Engine):
    """Operands of up to 16 bits, and sums of any length, on a unit that takes int8 and returns
    int32.

    The bytes of one operand are further channels in the same product, those of the other, which is
    the one unfolded, take a product each.
    """

    def __init__(self, unit: Engine) -> None:
        self.unit = unit
        self.name = f"{unit.name}_cut"
        self.device_types = unit.device_types

    def has_units(self, device_type: str) -> bool:
        return self.unit.has_units(device_type)

    @staticmethod
    def terms(products: int) -> int:
        """Terms of a sum from which so many products of bytes are faster than fp32 or fp64 units
        (measured with one thread; each product's sums are added up apart)."""
        return int(4 ** (products + 1))

    def supports(self, task: Task) -> bool:
        plan = _plan(task)
        if plan is None or task.bound >= 2**52:  # offsets add less than twice
            return False
        if task.terms < self.terms(plan.a.bytes * plan.b.bytes):
            return False
        return self.unit.supports(plan.part)

    def sums(
        self, task: Task, a: Tensor, b: Tensor, like: Tensor, zero_point: Tensor | None
    ) -> Tensor:
        plan = _plan(task)
        assert plan is not None
        # modulo 2^32, from which the exact sum is far; or below 2^53 all along
        dtype = torch.int32 if task.bound < 2**31 else torch.float64
        total: Tensor | None = None
        for left, right in task.product.parts(a, b, task.count, plan.part.count):
            for factor, sums in self._parts(left, right, like, plan):
                if total is None:  # the first are of the bytes: as large as the product
                    total = torch.zeros_like(sums, dtype=dtype)
                total.add_(sums, alpha=factor)
        assert total is not None
        grouped = task.product.kind != "grad_weight" and task.product.operation.groups > 1
        return total.flatten(1, 2) if grouped else total

    def _parts(
        self, a: Tensor, b: Tensor, like: Tensor, plan: _Plan
    ) -> Iterator[tuple[int, Tensor]]:
        """The factors and sums that add to one part of the product: int32, broadcastable to the
        first of them; in forward and grad_input groups have an axis of their own."""
        product: Product = plan.part.product
        groups, last = product.operation.groups, product.kind == "grad_weight"
        inside = groups if last else 1  # along the kept axis of an operand
        axis_a = product.axes("a", a.dim())[0][-1]
        axis_b = product.axes("b", b.dim())[0][-1]
        lefts, rights = plan.a.operands(a, axis_a, inside), plan.b.operands(b, axis_b, inside)
        if last:
            factors, others = plan.a.factors, plan.b.factors
            sizes = [x.shape[axis_a] // groups for x in lefts]
            lefts = [_stacked(lefts, axis_a, groups)]
        else:
            factors, others = plan.b.factors, plan.a.factors
            sizes = [x.shape[axis_b] for x in rights]
            rights = [_stacked(rights, axis_b, 1)]
        for other, (left, right) in zip(others, itertools.product(lefts, rights), strict=True):
            shape = resized(product, like, left, right)
            result = self.unit.product(plan.part, left, right, shape)
            along = 1 if last else product.operation.channel_axis(result.dim())
            if not last and groups > 1:
                result, along = result.unflatten(1, (groups, -1)), 2
            for factor, sums in zip(factors, result.split(sizes, along), strict=True):
                yield factor * other, sums


def _stacked(operands: list[Tensor], axis: int, groups: int) -> Tensor:
    """One operand, those of each group together."""
    if len(operands) == 1:
        return operands[0]
    if groups == 1:
        return torch.cat(operands, axis)
    apart = [operand.unflatten(axis, (groups, -1)) for operand in operands]
    return torch.cat(apart, axis + 1).flatten(axis, axis + 1)
