"""What a quantizing kernel is told of a tensor, as far as it follows from layouts and formats."""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from typing import NamedTuple

import torch

from quantizers.formats import Format, IntFormat
from quantizers.granularity import compact_shape
from quantizers.rounding import Rounding

from .layout import Walk, walk
from .serving import MODES, SOURCES, TARGETS


class Plan(NamedTuple):
    """dtype, strides    of the elements
    compact           one entry for each block
    numbers           of the kernel: into SOURCES, TARGETS and MODES
    walk, words       over x and the elements, and as the kernel takes it
    constants         what the kernel knows of the format
    """

    dtype: torch.dtype
    strides: tuple[int, ...]
    compact: tuple[int, ...]
    numbers: tuple[int, int, int]
    walk: Walk
    words: tuple[int, ...]
    constants: ctypes.Array[ctypes.c_float]


@lru_cache(maxsize=4096)
def plan(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    block: tuple[int, ...],
    format: Format,
    rounding: Rounding,
    scaled: bool,
    momentum: float = 0.0,
) -> Plan | None:
    """For a tensor x; None where no kernel serves it.  The elements are laid out as empty_like(x);
    block: the size of the walk's granules."""
    if dtype not in SOURCES or rounding.mode not in MODES or 0 in shape:
        return None
    target = format.dtype if isinstance(format, IntFormat) else torch.float32
    like = torch.empty_like(torch.empty_strided(shape, strides, device="meta")).stride()
    path = walk(shape, strides, like, block, rounding.random_bits > 0)
    if path is None:
        return None
    numbers = SOURCES[dtype], TARGETS[target], MODES[rounding.mode]
    known, words = constants(format, scaled, momentum), (*path[:4], *path.outer)
    return Plan(target, like, compact_shape(shape, block), numbers, path, words, known)


@lru_cache(maxsize=256)
def constants(
    format: Format, scaled: bool = True, momentum: float = 0.0
) -> ctypes.Array[ctypes.c_float]:
    """8 numbers for elements, all exact in fp32, then the format's largest, the momentum."""
    if isinstance(format, IntFormat):
        values: list[float] = [format.low, format.high]
    else:
        rule = format.when_clipped if scaled else format.on_overflow
        over = {"inf": math.inf, "nan": math.nan, "saturate": format.largest}[rule]
        values = [
            format.mantissa, format.min_exponent, format.largest, over,
            format.signed, format.zero, format.smallest, format.has_inf,
        ]  # fmt: skip
    values += [0.0] * (8 - len(values)) + [format.largest, momentum]
    return (ctypes.c_float * 10)(*values)  # no tensor: it would take torch's default device
