"""A norm's arithmetic in few bits: what every operation and every partial sum is rounded to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quantizers import FloatFormat, fp32, round_to
from quantizers.devices.numbers import divided

from ..checks import choice, instance

#: computed in fp32 and rounded once, +, -, *, / and sqrt are those of a format of so few mantissa
#: bits (Figueroa 1995: 24 >= 2 * 11 + 2 significant bits)
_MANTISSA = 10


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Every elementwise operation of a norm is rounded to `format`, every partial sum to
    `accumulator`, to nearest even.

    format        a FloatFormat of at most 10 mantissa bits, or fp32
    accumulator   the same; a finished sum or mean is then rounded to `format`
    sums          "plain": a sum is a sum, and overflows where the accumulator ends: fp16 holds the
                  sum of 65504 ones;  "halved": every partial sum of a mean is halved, so that it
                  stays where the terms are

    fp64 tensors are computed in fp64: there `fp32` rounds to nothing, as everywhere in a norm.
    A sum is a balanced tree: the terms, filled up with zeros to a power of two, are folded in
    halves, element i with element i + n / 2, until one is left.
    """

    format: FloatFormat
    accumulator: FloatFormat = fp32
    sums: Literal["plain", "halved"] = "plain"

    def __post_init__(self) -> None:
        for name, got in (("format", self.format), ("accumulator", self.accumulator)):
            instance(f"arithmetic.{name}", got, FloatFormat, "a FloatFormat")
            if (got.mantissa > _MANTISSA and got != fp32) or not (got.signed and got.zero):
                raise ValueError(
                    f"arithmetic.{name}: got {got}, need fp32 or a signed format with a zero and "
                    f"at most {_MANTISSA} mantissa bits, whose operations fp32 can simulate"
                )
        choice("arithmetic.sums", self.sums, ("plain", "halved"))

    def round(self, x: Tensor) -> Tensor:
        """x as a register of the format holds it: fp32 or fp64 -> the same dtype."""
        return x if self.format == fp32 else round_to(x, self.format)

    def sum(self, x: Tensor, over: Sequence[int]) -> Tensor:
        """The sum along the axes `over`, which stay, with length 1."""
        total, terms = self._folded(x, over)
        return self.round(total * terms if self.sums == "halved" else total)

    def mean(self, x: Tensor, over: Sequence[int]) -> Tensor:
        """The mean along the axes `over`, which stay, with length 1."""
        total, terms = self._folded(x, over)
        count = x.numel() // max(total.numel(), 1)
        return self.round(
            total * (terms / count) if self.sums == "halved" else divided(total, count)
        )

    def _folded(self, x: Tensor, over: Sequence[int]) -> tuple[Tensor, int]:
        """The sum along `over`, halved so often as it has levels if asked; the number of terms,
        filled up."""
        level = rows(x, over)
        count = level.shape[1]
        terms = 1
        while terms < count:  # not by count's bits: torch.compile would compile for it alone
            terms *= 2
        if terms > count:
            level = torch.nn.functional.pad(level, (0, terms - count))
        while level.shape[1] > 1:
            half = level.shape[1] // 2
            level = level[:, :half] + level[:, half:]
            level = level * 0.5 if self.sums == "halved" else level
            level = level if self.accumulator == fp32 else round_to(level, self.accumulator)
        return level.reshape(kept(x, over)), terms

    def __str__(self) -> str:
        return f"arithmetic {self.format}, {self.sums} sums in {self.accumulator}"


def kept(x: Tensor, over: Sequence[int]) -> list[int]:
    """x's shape, but for length 1 along the axes `over`."""
    return [1 if axis in over else size for axis, size in enumerate(x.shape)]


def rows(x: Tensor, over: Sequence[int]) -> Tensor:
    """x as a matrix whose rows run along the axes `over`."""
    rest = [axis for axis in range(x.dim()) if axis not in over]
    return x.permute(*rest, *over).reshape(-1, length(x, over))


def length(x: Tensor, over: Sequence[int]) -> int:
    """The number of elements in such a row."""
    return math.prod([x.shape[axis] for axis in over])
