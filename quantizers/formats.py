"""Number formats as specifications, and those that have a name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import checks
from .float_format import FloatFormat as FloatFormat
from .float_format import Overflow as Overflow


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

    def __str__(self) -> str:
        name = f"{'' if self.signed else 'u'}int{self.bits}"
        return name if self.symmetric else f"{name} affine"


Format = IntFormat | FloatFormat

int8 = IntFormat(8)
uint8 = IntFormat(8, signed=False, symmetric=False)
fp32 = FloatFormat(8, 23, name="fp32")
tf32 = FloatFormat(8, 10, name="tf32")
bf16 = FloatFormat(8, 7, name="bf16")
fp16 = FloatFormat(5, 10, name="fp16")
e5m2 = FloatFormat(5, 2, name="e5m2")
e4m3 = FloatFormat(4, 3, specials="fn", name="e4m3")
e3m2 = FloatFormat(3, 2, specials="finite", name="e3m2")
e2m3 = FloatFormat(2, 3, specials="finite", name="e2m3")
e2m1 = FloatFormat(2, 1, specials="finite", name="e2m1")
e3m0 = FloatFormat(3, 0, specials="finite", name="e3m0")  # power of two, 1-3-0
e8m0 = FloatFormat(8, 0, bias=127, specials="fn", signed=False, zero=False, name="e8m0")

#: formats that torch has a dtype of 16 bits for
NATIVE: dict[Format | None, torch.dtype] = {fp16: torch.float16, bf16: torch.bfloat16}

NAMED: dict[str, Format] = {
    **{f"int{bits}": IntFormat(bits) for bits in range(2, 17)},
    **{f"uint{bits}": IntFormat(bits, signed=False, symmetric=False) for bits in range(2, 17)},
    **{f.name: f for f in vars().copy().values() if isinstance(f, FloatFormat)},
}


#: what others call a format -> what to give
_OTHER_NAMES = {
    "fp8": "'e4m3' (more precise) or 'e5m2' (wider)",
    "fp6": "'e2m3' (more precise) or 'e3m2' (wider)",
    "fp4": "'e2m1'",
    "e4m3fn": "'e4m3'",
    **dict.fromkeys(("float16", "half"), "'fp16'"),
    **dict.fromkeys(("float32", "float", "single"), "'fp32'"),
    "bfloat16": "'bf16'",
}


def get(name: str) -> Format:
    """The named format; ValueError with the nearest name otherwise."""
    if not isinstance(name, str) or name not in NAMED:
        other = _OTHER_NAMES.get(name.lower()) if isinstance(name, str) else None
        hint = checks.suggestion(name, NAMED) if other is None else f"; that is {other} here."
        raise ValueError(f"unknown format {checks.shown(name)}{hint} Known: {', '.join(NAMED)}")
    return NAMED[name]
