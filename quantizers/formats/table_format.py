"""Formats that are a list of values, each with a code."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from .. import checks, tensor_checks


@dataclass(frozen=True)
class TableFormat:
    """Up to 256 values in ascending order; a value's code is its place among them, from 0.

    A number is rounded to the value that is nearest to it, of two that are as near to the lower,
    or stochastically to one of the two that it lies between; what lies beyond an end becomes that
    end.  NaN stays NaN, and an infinity becomes it.  Zero has no sign.

    values   2 to 256 numbers that fp32 holds exactly, each larger than the one before; others are
             refused, not rounded: torch.tensor(values).tolist() rounds them

    Raises ValueError for other values, TypeError for what are no numbers.
    """

    values: tuple[float, ...] = field(repr=False)
    name: str = ""

    def __post_init__(self) -> None:
        given = self.values
        if not isinstance(given, tuple | list):
            checks.refuse("values", given, "a tuple of numbers in ascending order")
        for value in given:
            checks.number("values", value, low=-checks.LARGEST, high=checks.LARGEST)
        values = tuple(float(value) + 0.0 for value in given)
        if not 2 <= len(values) <= 256:
            raise ValueError(f"values: got {len(values)} of them, need 2 to 256")
        for low, high in pairwise(values):
            if not low < high:
                raise ValueError(f"values: got {high!r} behind {low!r}, need ascending numbers")
        rounded = torch.tensor(values, dtype=torch.float32, device="cpu").tolist()
        if inexact := [v for v, fp32 in zip(values, rounded, strict=True) if v != fp32]:
            raise ValueError(
                f"values: fp32 does not hold {inexact[0]!r}, need numbers that it does; "
                f"torch.tensor(values).tolist() rounds them"
            )
        checks.text("name", self.name)
        object.__setattr__(self, "values", values)

    @property
    def bits(self) -> int:
        """Of a code."""
        return (len(self.values) - 1).bit_length()

    @property
    def low(self) -> float:
        return self.values[0]

    @property
    def high(self) -> float:
        return self.values[-1]

    @property
    def signed(self) -> bool:
        return self.low < 0

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return max(abs(self.low), abs(self.high))

    @property
    def smallest(self) -> float:
        """The smallest magnitude that is not 0."""
        return min(abs(value) for value in self.values if value)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def codes(self) -> Tensor:
        """Every code, ascending; int64."""
        return torch.arange(len(self.values))

    def decode(self, codes: Tensor) -> Tensor:
        """Values of codes.  codes: any shape, whole numbers below the number of values -> fp32."""
        codes = tensor_checks.whole("codes", codes).to(torch.int64)
        values = torch.tensor(self.values, dtype=torch.float32, device=codes.device)
        return values[codes]

    def encode(self, elements: Tensor) -> Tensor:
        """Codes of elements that are values of the table.  Any shape -> int64, same shape.

        Raises ValueError for an element that is none.
        """
        x = tensor_checks.real(elements, "elements").double()
        values = torch.tensor(self.values, dtype=torch.float64, device=x.device)
        code = torch.bucketize(x.contiguous(), values).clamp(max=len(self.values) - 1)
        if not bool(torch.equal(values[code], x + 0.0)):
            raise ValueError(f"encode: an element is not a value of {self}; round it first")
        return code

    def spacing(self, x: Tensor) -> Tensor:
        """The distance between the two values that each x lies between, or the outermost two.
        x: fp64, any shape -> fp64, same shape."""
        values = torch.tensor(self.values, dtype=torch.float64, device=x.device)
        lower = below(x.contiguous(), values)
        return values[lower + 1] - values[lower]

    def ordinals(self, elements: Tensor) -> Tensor:
        """Codes, of which those of neighbouring values differ by 1; NaN as the lowest value.
        Elements -> int64."""
        return self.encode(elements.nan_to_num(self.low))

    def __str__(self) -> str:
        return self.name or f"table of {len(self.values)} values up to {self.largest:g}"


def below(x: Tensor, values: Tensor) -> Tensor:
    """The place of the lower of the two neighbours that x lies between, int64; beyond the ends, of
    the outermost two.  x: contiguous; values: ascending."""
    return torch.bucketize(x, values, right=True).sub_(1).clamp_(0, len(values) - 2)


def fp32(number: float) -> float:
    """The nearest number of fp32, ties to even."""
    return torch.tensor(number, dtype=torch.float32, device="cpu").item()


def dynamic(signed: bool) -> tuple[float, ...]:
    """The 8-bit dynamic map: 0, 1, and in decade i of seven, from 1e-7 to 1, the middles of 2^i
    equal parts of 0.1 to 1 times 10^(i - 6), of either sign (unsigned: of twice as many parts).

    Dettmers, arXiv 1511.04561, as optimizer states have it: Dettmers et al. 2021, arXiv 2110.02861;
    in fp32 as bitsandbytes 0.50.2 (functional.create_dynamic_map) computes it: a part's ends are
    fl(0.1 + k * step) in the lower half and fl(1 - k * step) in the upper, its middle half the
    rounded sum, times the rounded power of ten.
    """
    found = [0.0, 1.0]
    low = fp32(0.1)
    for decade in range(7):
        count = 2 ** (decade + (not signed))
        step, power = math.ldexp(fp32(1 - low), -decade - (not signed)), fp32(10.0 ** (decade - 6))
        ends = [
            fp32(low + step * k) if k < (count + 1) // 2 else fp32(1 - step * (count - k))
            for k in range(count + 1)
        ]
        middles = [fp32(a + b) * 0.5 for a, b in pairwise(ends)]
        scaled = [fp32(power * middle) for middle in middles]
        found += [*scaled, *(-value for value in scaled)] if signed else scaled
    return tuple(sorted(found))


#: NormalFloat: means of neighbouring quantiles of the normal distribution, over the largest, with
#: an exact 0.  Dettmers et al. 2023 (QLoRA), arXiv 2305.14314, appendix E; bitsandbytes 0.50.2
#: (functional.get_4bit_type)
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
