"""Rounding of real numbers to integers, and, with it, to the grid of a floating-point format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from . import checks, tensor_checks
from .devices.numbers import constant
from .formats import NATIVE, FloatFormat, Overflow
from .noise import uniform_integers

Mode = Literal["nearest_even", "half_away", "toward_zero", "floor", "ceil", "stochastic"]
#: the modes that torch has
_TORCH = {
    "nearest_even": torch.round, "toward_zero": torch.trunc, "floor": torch.floor,
    "ceil": torch.ceil,
}  # fmt: skip


@dataclass(frozen=True)
class Rounding:
    """A rounding to integers: `rounding(x, bits) -> x's dtype, integer valued`.

    mode          nearest_even, half_away, toward_zero, floor, ceil or stochastic
    random_bits   how many random bits a stochastic rounding uses per element; 0 for the others

    Stochastic: the magnitude is rounded up when (u + 1/2) / 2^random_bits < fraction, where u is
    uniform on 0 .. 2^random_bits - 1: a comparison, so integers are fixed points and the error is
    unbiased within 2^-(random_bits + 1).  NaN and +-inf stay what they are; -0 keeps its sign.
    """

    mode: Mode
    random_bits: int = 0

    def __post_init__(self) -> None:
        checks.choice("rounding", self.mode, get_args(Mode))
        if self.mode == "stochastic":
            # fp32 holds u + 1/2 exactly up to 23 bits
            checks.integer("random_bits", self.random_bits, low=1, high=23)
        elif checks.integer("random_bits", self.random_bits) != 0:
            raise ValueError(
                f"random_bits: got {checks.shown(self.random_bits)}, {self.mode} rounding uses none"
            )

    def __call__(self, x: Tensor, bits: Tensor | None = None) -> Tensor:
        """x: fp32 or fp64; bits: int32 random bits of x's shape, for a stochastic rounding."""
        tensor_checks.wide(x)
        if self.mode in _TORCH:
            return _TORCH[self.mode](x)
        magnitude = x.abs()
        whole = magnitude.floor()
        fraction = magnitude - whole  # exact
        if self.mode == "half_away":
            up = fraction >= 0.5
        else:
            if bits is None:
                raise ValueError(
                    "stochastic rounding needs random bits; pass key= to the quantizer"
                )
            tensor_checks.random("bits", bits, x)
            draw = uniform_integers(bits, self.random_bits).to(x.dtype)
            up = draw.add_(0.5) < fraction.mul_(2.0**self.random_bits)
        return torch.copysign(whole.add_(up), x)

    def __str__(self) -> str:
        if self.mode == "stochastic" and self.random_bits != 23:
            return f"stochastic({self.random_bits})"
        return self.mode


nearest_even = Rounding("nearest_even")
half_away = Rounding("half_away")
toward_zero = Rounding("toward_zero")
floor = Rounding("floor")
ceil = Rounding("ceil")


def stochastic(random_bits: int = 23) -> Rounding:
    """Stochastic rounding that spends `random_bits` (1..23) random bits an element."""
    return Rounding("stochastic", random_bits)


#: by what they print as, and stochastic ones by their random bits, too
NAMED: dict[str, Rounding] = {
    **{str(r): r for r in (nearest_even, half_away, toward_zero, floor, ceil, stochastic())},
    **{f"stochastic({bits})": stochastic(bits) for bits in range(1, 24)},
}
#: what others call a rounding -> what to give
_OTHER_NAMES = {
    **dict.fromkeys(("nearest", "round", "rne", "rn", "half_even"), "nearest_even"),
    **dict.fromkeys(("truncate", "trunc", "rz", "zero"), "toward_zero"),
    **dict.fromkeys(("up", "ru"), "ceil"),
    **dict.fromkeys(("down", "rd"), "floor"),
    **dict.fromkeys(("sr", "rs", "random", "unbiased"), "stochastic"),
    "half_up": "half_away",
}


def get(name: str) -> Rounding:
    """The named rounding: nearest_even, stochastic, stochastic(8) ...; ValueError with the nearest
    name otherwise."""
    if not isinstance(name, str) or name not in NAMED:
        near = _OTHER_NAMES.get(name.lower()) if isinstance(name, str) else None
        hint = checks.suggestion(name, NAMED) if near is None else f"; did you mean {near!r}?"
        raise ValueError(
            f"unknown rounding {checks.shown(name)}{hint}; known: {', '.join(get_args(Mode))}, "
            f"stochastic(1) to stochastic(23), by its random bits"
        )
    return NAMED[name]


def power_of_two(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """2^exponent, exact, for integer exponents of normal numbers (no pow, no ldexp)."""
    if dtype == torch.float64:
        return ((exponent + 1023) << 52).view(torch.float64)
    return ((exponent + 127) << 23).view(torch.float32)


def round_to_float(
    x: Tensor,
    fmt: FloatFormat,
    rounding: Rounding = nearest_even,
    bits: Tensor | None = None,
    *,
    overflow: Overflow | None = None,
    source: Tensor | None = None,
) -> Tensor:
    """x rounded once to the values of `fmt`.  fp32 or fp64, any shape -> same dtype and shape.

    A finite value whose rounded magnitude (with an unbounded exponent) exceeds `fmt.largest`
    follows `overflow` (None: `fmt.on_overflow`); inf and NaN are kept as FloatFormat states.
    Negative numbers become +0 in an unsigned format; without a zero, what is too small becomes
    +-`fmt.smallest`.

    source: what x was before it was scaled (None: x itself), x's shape.  Where it is finite, an
    infinite x is one of the finite values beyond the largest.
    """
    x = tensor_checks.wide(x).resolve_neg()  # bits are read below
    if bits is not None:
        tensor_checks.random("bits", bits, x)
    if source is not None and tensor_checks.tensor("source", source).shape != x.shape:
        raise ValueError(f"source: got {checks.shown(source)}, need x's shape {tuple(x.shape)}")
    checks.instance("fmt", fmt, FloatFormat, "a FloatFormat")
    checks.instance("rounding", rounding, Rounding, "a Rounding such as nearest_even")
    if overflow is None:
        overflow = fmt.on_overflow
    else:
        checks.choice("overflow", overflow, get_args(Overflow))
    native = fmt in NATIVE and overflow == "inf"
    if native and rounding == nearest_even and x.dtype == torch.float32:
        # The same bits in two passes.  Not when compiling: the compiler drops such cast pairs.
        if not torch.compiler.is_compiling():
            return x.to(NATIVE[fmt]).to(torch.float32)
    if fmt.min_exponent < _LOWEST and x.dtype == torch.float32:
        # the exponents of fp32's subnormals are not in their bits; in fp64 they are normal
        wide = x.double()
        source = wide if source is None else source
        return round_to_float(wide, fmt, rounding, bits, overflow=overflow, source=source).float()
    source = x if source is None else source
    finite, infinite = torch.isfinite(source), torch.isinf(source)
    if not fmt.signed:
        x = torch.where(x <= 0, 0.0, x)
    if x.dtype == torch.float64:
        exponent = ((x.view(torch.int64) >> 52) & 0x7FF) - 1023
    else:
        exponent = ((x.view(torch.int32) >> 23) & 0xFF) - 127
    # the step of x's binade is 2^(exponent - mantissa): scale it to 1, round, scale back.  Each
    # scaling is exact and made in two halves, so that no factor leaves the normal range; but for
    # what is far below a large step, which counts as something above 0.
    top = 1023 if x.dtype == torch.float64 else 127
    exponent = exponent.clamp(min=fmt.min_exponent, max=top) - fmt.mantissa
    half = exponent >> 1
    rest = exponent - half
    scaled = x * power_of_two(-half, x.dtype) * power_of_two(-rest, x.dtype)
    if fmt.min_exponent > fmt.mantissa:
        gone = (scaled == 0) & (x != 0)
        scaled = torch.where(gone, torch.copysign(constant(_LITTLE, x), x), scaled)
    y = rounding(scaled, bits) * power_of_two(half, x.dtype) * power_of_two(rest, x.dtype)
    over = {"inf": float("inf"), "nan": float("nan"), "saturate": fmt.largest}[overflow]
    y = torch.where(finite & (y.abs() > fmt.largest), torch.copysign(constant(over, y), y), y)
    if not fmt.zero:
        lifted = torch.copysign(constant(fmt.smallest, y), y)
        y = torch.where(finite & (y.abs() < fmt.smallest), lifted, y)
    if not fmt.has_inf:
        y = torch.where(infinite, float("nan"), y)
    elif not fmt.signed:
        y = torch.where(infinite & (source < 0), float("nan"), y)
    return y


def round_to(x: Tensor, fmt: FloatFormat) -> Tensor:
    """x rounded to the nearest value of `fmt`, ties to even.  Any float dtype -> the same dtype.

    The format in which a layer's output is stored; overflow gives what `fmt` states.
    """
    wide = x if tensor_checks.real(x).dtype == torch.float64 else x.float()
    return round_to_float(wide, fmt).to(x.dtype)


#: of a step, where every rounding does what it does with less
_LITTLE = 2.0**-30
#: exponent of fp32's smallest normal number
_LOWEST = -126
