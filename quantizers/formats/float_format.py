"""Floating-point formats: every bound is derived from the widths, none is stored."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from .. import checks, tensor_checks

Specials = Literal["ieee", "fn", "finite"]
Overflow = Literal["inf", "nan", "saturate"]


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
        if (
            self.min_exponent - self.mantissa < -149
            or self.largest > torch.finfo(torch.float32).max
        ):
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
    def low(self) -> float:
        return -self.largest if self.signed else 0.0

    @property
    def high(self) -> float:
        return self.largest

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
    def when_clipped(self) -> Overflow:
        """The overflow rule of numbers that are scaled to the format, or scales in it: as stated,
        else what a range or a rounded scale clips must not become infinite."""
        return self.overflow or "saturate"

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def decode(self, codes: Tensor) -> Tensor:
        """Values of bit patterns.  codes: any shape, 0 .. 2^bits - 1 -> fp32, same shape."""
        codes = tensor_checks.whole("codes", codes).to(torch.int64)
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
        value = tensor_checks.real(elements, "elements").double()
        if value.is_meta:
            raise ValueError("elements: got a tensor on the meta device, which holds no values")
        magnitude = value.abs()
        exponent = self._exponents(magnitude).long()
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

    def spacing(self, x: Tensor) -> Tensor:
        """The distance between the two values that each x lies between, or would without a largest
        value; of what is not finite, the smallest.  x: fp64, any shape -> fp64, same shape."""
        steps = self._exponents(x.abs()) - self.mantissa
        return torch.ldexp(torch.ones_like(x), steps)

    def ordinals(self, elements: Tensor) -> Tensor:
        """Whole numbers, of the value's sign, of which those of neighbouring values differ by 1
        (by more where 0 would lie in a format without it); of what is not finite, 0.
        Elements -> int64, same shape."""
        magnitude = elements.abs().double().nan_to_num(0.0, 0.0, 0.0)
        exponent = self._exponents(magnitude)
        significand = torch.ldexp(magnitude, self.mantissa - exponent).round().long()
        steps = ((exponent.long() - self.min_exponent) << self.mantissa) + significand
        return elements.sign().long() * steps

    def _exponents(self, magnitude: Tensor) -> Tensor:
        """Of the binade in which a value of this magnitude lies, min_exponent at least; int32."""
        exponent = torch.frexp(magnitude).exponent - 1  # frexp: 0.5 <= |m| < 1
        normal = torch.isfinite(magnitude) & (magnitude != 0)
        return torch.where(normal, exponent, self.min_exponent).clamp(min=self.min_exponent)

    def codes(self) -> Tensor:
        """Every bit pattern; shape (2^bits,), int64."""
        return torch.arange(2**self.bits)

    def __str__(self) -> str:
        if self.name:
            return self.name
        _, _, *others = fields(self)
        own = {f.name: value for f in others if (value := getattr(self, f.name)) != f.default}
        if not own:
            return f"e{self.exponent}m{self.mantissa}"
        more = ", ".join(f"{name}={value}" for name, value in own.items())
        return f"FloatFormat({self.exponent}, {self.mantissa}, {more})"
