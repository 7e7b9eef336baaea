"""Number formats as specifications: every bound is derived from the widths, none is stored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from . import checks

Specials = Literal["ieee", "fn", "finite"]
Overflow = Literal["inf", "nan", "saturate"]


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


@dataclass(frozen=True)
class FloatFormat:
    """Floating point of 1 sign, `exponent` and `mantissa` bits; subnormals are always kept.

    bias       default 2^(exponent-1) - 1
    specials   "ieee": the top exponent holds inf and NaN; "fn": only the all-ones code is NaN,
               no inf; "finite": neither
    overflow   what a finite value that rounds beyond `largest` becomes: "inf" (default of
               "ieee"), "nan", or "saturate" to +-largest (default of the others)
    zero       False drops zero and subnormals: exponent field 0 is a normal binade (e8m0)

    NaN stays NaN.  +-inf stays +-inf where the format has it and becomes NaN elsewhere, also
    under "saturate": a non-finite value is never laundered into a number.  Every value must be
    exact in fp32.  Naming follows the OCP FP8 and MX specifications.
    """

    exponent: int
    mantissa: int
    bias: int | None = None
    specials: Specials = "ieee"
    overflow: Overflow | None = None
    signed: bool = True
    zero: bool = True
    name: str = ""

    def __post_init__(self) -> None:
        checks.integer("exponent", self.exponent, low=1, high=8)
        checks.integer("mantissa", self.mantissa, low=0, high=23)
        if self.bias is not None:
            checks.integer("bias", self.bias, low=-127, high=254)
        checks.choice("specials", self.specials, ("ieee", "fn", "finite"))
        if self.overflow is not None:
            checks.choice("overflow", self.overflow, ("inf", "nan", "saturate"))
        checks.boolean("signed", self.signed)
        checks.boolean("zero", self.zero)
        checks.text("name", self.name)
        if self.overflow == "inf" and self.specials != "ieee":
            raise ValueError(f"overflow: got 'inf', but specials={self.specials!r} has no inf")
        if self.specials == "ieee" and (self.exponent < 2 or self.mantissa < 1):
            raise ValueError(
                f"specials: 'ieee' needs at least 2 exponent bits and 1 mantissa bit, got "
                f"{self.exponent} and {self.mantissa}; use 'fn' or 'finite'"
            )
        if self.specials == "fn" and self.exponent + self.mantissa < 2:
            raise ValueError("specials: 'fn' needs at least 2 bits besides the sign")
        if self.smallest < 2.0**-149 or self.largest > torch.finfo(torch.float32).max:
            raise ValueError(
                f"{self}: values from {self.smallest:g} to {self.largest:g} are not all exact in "
                f"fp32 (2^-149 to 3.4e38); change exponent or bias"
            )

    @property
    def bits(self) -> int:
        return int(self.signed) + self.exponent + self.mantissa

    @property
    def offset(self) -> int:
        """The exponent bias in force."""
        return 2 ** (self.exponent - 1) - 1 if self.bias is None else self.bias

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal number (and of the subnormals' step)."""
        return (1 if self.zero else 0) - self.offset

    @property
    def smallest_normal(self) -> float:
        return math.ldexp(1.0, self.min_exponent)

    @property
    def smallest(self) -> float:
        """The smallest positive value: subnormal where the mantissa has bits."""
        return math.ldexp(1.0, self.min_exponent - (self.mantissa if self.zero else 0))

    @property
    def largest(self) -> float:
        top = 2**self.exponent - 1 - self.offset
        ones = 2 ** (self.mantissa + 1) - 1  # the significand of all ones, in steps
        if self.specials == "finite":
            return math.ldexp(ones, top - self.mantissa)
        if self.specials == "fn" and self.mantissa > 0:
            return math.ldexp(ones - 1, top - self.mantissa)
        return math.ldexp(ones, top - 1 - self.mantissa)

    @property
    def has_inf(self) -> bool:
        return self.specials == "ieee"

    @property
    def has_nan(self) -> bool:
        return self.specials != "finite"

    @property
    def on_overflow(self) -> Overflow:
        """The overflow rule in force."""
        if self.overflow is not None:
            return self.overflow
        return "inf" if self.has_inf else "saturate"

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def decode(self, codes: Tensor) -> Tensor:
        """Values of bit patterns.  codes: any shape, 0 .. 2^bits - 1 -> fp32, same shape."""
        codes = checks.whole("codes", codes).to(torch.int64)
        fraction = codes & (2**self.mantissa - 1)
        field = (codes >> self.mantissa) & (2**self.exponent - 1)
        normal = field > 0 if self.zero else torch.ones_like(field, dtype=torch.bool)
        significand = fraction.double() * 2.0**-self.mantissa + normal.double()
        exponent = torch.where(normal, field - self.offset, self.min_exponent)
        value = torch.ldexp(significand, exponent.double())
        if self.specials == "ieee":
            special = field == 2**self.exponent - 1
            value = value.masked_fill(special & (fraction == 0), float("inf"))
            value = value.masked_fill(special & (fraction != 0), float("nan"))
        elif self.specials == "fn":
            ones = 2 ** (self.exponent + self.mantissa) - 1
            value = value.masked_fill((codes & ones) == ones, float("nan"))
        if self.signed:
            negative = (codes >> (self.exponent + self.mantissa)) & 1 == 1
            value = torch.where(negative, -value, value)
        return value.float()

    def encode(self, elements: Tensor) -> Tensor:
        """Bit patterns of elements that lie on the grid.  Any shape -> int64, same shape.

        Raises ValueError for a value that the format does not hold.
        """
        value = checks.real(elements, "elements").double()
        if value.is_meta:
            raise ValueError("elements: got a tensor on the meta device, which holds no values")
        magnitude = value.abs()
        exponent = torch.frexp(magnitude).exponent.to(torch.int64) - 1
        exponent = exponent.clamp(min=self.min_exponent)
        exponent = torch.where(magnitude == 0, self.min_exponent, exponent)
        step = torch.ldexp(torch.ones_like(value), (exponent - self.mantissa).double())
        # significand counts steps; its implicit bit adds the 1 that subnormals lack
        significand = torch.nan_to_num(magnitude / step, 0.0, 0.0).to(torch.int64)
        lowest = 0 if self.zero else 1
        code = ((exponent - self.min_exponent) << self.mantissa) + significand
        code = code - (lowest << self.mantissa)
        if self.specials == "ieee":
            infinity = (2**self.exponent - 1) << self.mantissa
            code = torch.where(torch.isinf(value), infinity, code)
            code = torch.where(torch.isnan(value), infinity + 2 ** (self.mantissa - 1), code)
        elif self.specials == "fn":
            ones = 2 ** (self.exponent + self.mantissa) - 1
            code = torch.where(torch.isnan(value), ones, code)
        if self.signed:
            code = code + (torch.signbit(value).long() << (self.exponent + self.mantissa))
        good = self.decode(code).double()
        if not bool(torch.equal(good.nan_to_num(1.5), value.nan_to_num(1.5))):
            raise ValueError(f"encode: an element is not a value of {self}; round it first")
        return code

    def codes(self) -> Tensor:
        """Every bit pattern; shape (2^bits,), int64."""
        return torch.arange(2**self.bits)

    def __str__(self) -> str:
        return self.name or f"e{self.exponent}m{self.mantissa}"


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

NAMED: dict[str, Format] = {
    **{f"int{bits}": IntFormat(bits) for bits in range(2, 17)},
    **{f"uint{bits}": IntFormat(bits, signed=False, symmetric=False) for bits in range(2, 17)},
    **{f.name: f for f in (fp32, tf32, bf16, fp16, e5m2, e4m3, e3m2, e2m3, e2m1, e3m0, e8m0)},
}


def get(name: str) -> Format:
    """The named format; ValueError with the nearest name otherwise."""
    if not isinstance(name, str) or name not in NAMED:
        hint = checks.suggestion(name, NAMED)
        raise ValueError(f"unknown format {checks.shown(name)}{hint} Known: {', '.join(NAMED)}")
    return NAMED[name]
