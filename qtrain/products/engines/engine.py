"""What an engine is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..operations import Kind, Operation
from .epilogue import Epilogue

#: told the name of the engine that serves a product, or a block of one
Note = Callable[[str], None]


class Span(NamedTuple):
    """The smallest and largest integer an operand's elements can be."""

    low: int
    high: int

    @property
    def magnitude(self) -> int:
        return max(-self.low, self.high)

    def within(self, low: int, high: int) -> bool:
        return low <= self.low and self.high <= high


@dataclass(frozen=True)
class Work:
    """The size of an exact product.

    count, per_index   indices along the axis that may be cut, products summed per index
    a, b               what the two operands' elements can be
    zero_point         whether the engine is to take a number within a's span from a's elements
    sums               whether the integers themselves are wanted, not fl32 of them and a scale
    multiplications    in one call: Operation.multiplications; None: not known
    """

    count: int
    per_index: int
    a: Span
    b: Span
    zero_point: bool = False
    sums: bool = True
    multiplications: int | None = None

    @property
    def magnitude(self) -> int:
        """The largest that an element of a can be, its zero point taken off."""
        return self.a.high - self.a.low if self.zero_point else self.a.magnitude

    @property
    def bound(self) -> int:
        """The largest magnitude the sum, or any partial sum, can reach."""
        return self.count * self.per_index * self.magnitude * self.b.magnitude


def holds(bound: int) -> torch.dtype:
    """The cheapest dtype in which integers up to `bound` add exactly."""
    if bound <= 2**24:
        return torch.float32
    return torch.int32 if bound < 2**31 else torch.float64


class Engine(Protocol):
    """A unit that adds products of integers exactly.

    supports   from the kind of product and its bounds and shapes alone
    exact_on   whether it is so on a kind of device: admission.Tried
    product    with an epilogue: its result, fp32; without: the exact integers as fp32, int32 or
               fp64, whichever holds `work.bound`.  a, b: integer elements; zero_point: 0-d, given
               where `work` says so and the engine takes one
    """

    @property
    def name(self) -> str: ...

    @property
    def device_types(self) -> tuple[str, ...]: ...

    @property
    def takes_zero_point(self) -> bool: ...

    def __hash__(self) -> int: ...

    def exact_on(self, device_type: str) -> bool: ...

    def supports(self, operation: Operation, kind: Kind, work: Work) -> bool: ...

    def product(
        self,
        operation: Operation,
        kind: Kind,
        a: Tensor,
        b: Tensor,
        like: Tensor,
        work: Work,
        *,
        zero_point: Tensor | None = None,
        epilogue: Epilogue | None = None,
    ) -> Tensor: ...
