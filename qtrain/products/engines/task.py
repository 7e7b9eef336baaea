"""What an engine is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from ..operations import Kind
from ..product import Product

#: told which product, or block of one, is served by the engine of which name
Note = Callable[[Kind, str], None]
#: Of a sum: "exact", of integers, to the last; "float", of any numbers, to the rounding of
#: floating-point units.
Promise = Literal["exact", "float"]


class Span(NamedTuple):
    """Integers between which an operand's elements lie."""

    low: int
    high: int

    @property
    def magnitude(self) -> int:
        return max(-self.low, self.high)

    def within(self, low: int, high: int) -> bool:
        return low <= self.low and self.high <= high


#: of numbers that are not quantized
ANY = Span(-(2**1024), 2**1024)


@dataclass(frozen=True)
class Task:
    """A product, and how large it is.

    count, per_index   indices along the axis that may be cut, products summed per index
    a, b               what the two operands' elements can be
    promise            what the sum is to be
    zero_point         whether the engine is to take a number within a's span from a's elements
    zero_points        whether it is to take one from a's and one from b's; a, b: what that leaves
    sums               whether the integers themselves are wanted, not fl32 of them and a scale
    multiplications    in one call: Product.multiplications; None: not known
    unit               of a "float" sum: the dtype in which it runs, the result rounded to it; None:
                       fp32, or fp64 for fp64 elements
    significant        bits of significand that hold every element; None: not known
    half               the 16-bit dtype that holds every element, its zero point taken off; None:
                       not known
    """

    product: Product
    count: int
    per_index: int
    a: Span
    b: Span
    promise: Promise = "exact"
    zero_point: bool = False
    zero_points: bool = False
    sums: bool = True
    multiplications: int | None = None
    unit: torch.dtype | None = None
    significant: int | None = None
    half: torch.dtype | None = None

    @property
    def terms(self) -> int:
        """Products in a sum, at most."""
        return self.count * self.per_index

    @property
    def magnitude(self) -> int:
        """The largest that an element of a can be, its zero point taken off."""
        return self.a.high - self.a.low if self.zero_point else self.a.magnitude

    @property
    def bound(self) -> int:
        """The largest magnitude the sum, or any partial sum, can reach."""
        return self.terms * self.magnitude * self.b.magnitude


def holds(bound: int) -> torch.dtype:
    """The cheapest dtype in which integers up to `bound` add exactly."""
    if bound <= 2**24:
        return torch.float32
    return torch.int32 if bound < 2**31 else torch.float64
