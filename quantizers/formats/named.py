"""The formats that have a name."""

from __future__ import annotations

import re

import torch

from .. import checks
from .float_format import FloatFormat
from .int_format import IntFormat
from .table_format import NF4, TableFormat, dynamic

Format = IntFormat | FloatFormat | TableFormat

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
nf4 = TableFormat(NF4, name="nf4")
dynamic8 = TableFormat(dynamic(signed=True), name="dynamic8")
udynamic8 = TableFormat(dynamic(signed=False), name="udynamic8")

#: formats that torch has a dtype of 16 bits for
NATIVE: dict[Format | None, torch.dtype] = {fp16: torch.float16, bf16: torch.bfloat16}

NAMED: dict[str, Format] = {
    **{f"int{bits}": IntFormat(bits) for bits in range(2, 17)},
    **{f"uint{bits}": IntFormat(bits, signed=False, symmetric=False) for bits in range(2, 17)},
    **{f.name: f for f in vars().copy().values() if isinstance(f, FloatFormat | TableFormat)},
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
    "dynamic": "'dynamic8' (signed) or 'udynamic8' (not negative)",
}


_WIDTHS = re.compile(r"e([2-8])m([1-9]|1\d|2[0-3])")


def by_widths(name: str) -> FloatFormat | None:
    """ "e6m9" as FloatFormat(6, 9), which shows itself so; None for another word."""
    found = _WIDTHS.fullmatch(name)
    return None if found is None else FloatFormat(int(found[1]), int(found[2]))


def get(name: str) -> Format:
    """The named format; ValueError with the nearest name otherwise."""
    if not isinstance(name, str) or name not in NAMED:
        other = _OTHER_NAMES.get(name.lower()) if isinstance(name, str) else None
        hint = checks.suggestion(name, NAMED) if other is None else f"; that is {other} here"
        if isinstance(name, str) and (own := by_widths(name)) is not None:
            hint += f"; of those widths is FloatFormat({own.exponent}, {own.mantissa})"
        raise ValueError(f"unknown format {checks.shown(name)}{hint}; formats.NAMED lists all")
    return NAMED[name]


def get_sum(name: str) -> Format:
    """The format of a sum by name, or by its widths, "e6m9"; ValueError for another."""
    return NAMED.get(name) or by_widths(name) or get(name)
