"""Number formats as specifications, and those that have a name."""

from __future__ import annotations

from . import checks
from .float_format import FloatFormat as FloatFormat
from .float_format import Overflow as Overflow
from .int_format import IntFormat as IntFormat

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
    **{f.name: f for f in vars().copy().values() if isinstance(f, FloatFormat)},
}


def get(name: str) -> Format:
    """The named format; ValueError with the nearest name otherwise."""
    if not isinstance(name, str) or name not in NAMED:
        hint = checks.suggestion(name, NAMED)
        raise ValueError(f"unknown format {checks.shown(name)}{hint} Known: {', '.join(NAMED)}")
    return NAMED[name]
