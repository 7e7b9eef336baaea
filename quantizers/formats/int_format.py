"""Integer formats: equal steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import checks


@dataclass(frozen=True)
class IntFormat:
    """Integers of `bits` bits: the elements of a tensor quantized with equal steps.

    symmetric, signed:    -(2^(b-1) - 1) .. 2^(b-1) - 1   (-2^(b-1) is not used), no zero point
    symmetric, unsigned:  0 .. 2^b - 1, no zero point (negative values clip to 0)
    affine, signed:       -2^(b-1) .. 2^(b-1) - 1, with a zero point
    affine, unsigned:     0 .. 2^b - 1, with a zero point

    Raises TypeError/ValueError unless bits is an integer from 2 to 16.
    """

    bits: int
    signed: bool = True
    symmetric: bool = True

    def __post_init__(self) -> None:
        checks.integer("bits", self.bits, low=2, high=16)
        checks.boolean("signed", self.signed)
        checks.boolean("symmetric", self.symmetric)

    @property
    def low(self) -> int:
        if not self.signed:
            return 0
        return -(1 << (self.bits - 1)) + (1 if self.symmetric else 0)

    @property
    def high(self) -> int:
        return int(2 ** (self.bits - 1 if self.signed else self.bits) - 1)

    @property
    def largest(self) -> float:
        return float(self.high)

    @property
    def dtype(self) -> torch.dtype:
        """The smallest integer dtype that holds every element (torch.uint16 lacks arithmetic)."""
        for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
            info = torch.iinfo(dtype)
            if info.min <= self.low and self.high <= info.max:
                return dtype
        raise AssertionError(self)

    def codes(self) -> Tensor:
        """Every element, ascending; shape (high - low + 1,), `dtype`."""
        return torch.arange(self.low, self.high + 1).to(self.dtype)

    def spacing(self, x: Tensor) -> Tensor:
        """The distance between the two values that each x lies between: 1.  fp64, 0-d."""
        return torch.ones((), dtype=torch.float64, device=x.device)

    def ordinals(self, elements: Tensor) -> Tensor:
        """Whole numbers of which those of neighbouring values differ by 1.  Elements -> int64."""
        return elements.to(torch.int64)

    def __str__(self) -> str:
        name = f"{'' if self.signed else 'u'}int{self.bits}"
        return name if self.symmetric else f"{name} affine"
