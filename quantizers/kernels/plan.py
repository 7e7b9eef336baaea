"""What a quantizing kernel is told of a tensor, as far as it follows from layouts and formats."""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from typing import NamedTuple

import torch

from quantizers.formats import FloatFormat, Format, IntFormat, TableFormat
from quantizers.granularity import Granularity, compact_shape
from quantizers.ranges.rules import RangeRule
from quantizers.ranges.running import Ema
from quantizers.rounding import Rounding

from .layout import Walk, contiguous, is_granule_major, walk
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
    runs: bool = False,
) -> Plan | None:
    """For a tensor x; None where no kernel serves it.  The elements are laid out as empty_like(x);
    block: the size of the walk's granules; runs: see `walk`."""
    if dtype not in SOURCES or rounding.mode not in MODES or 0 in shape:
        return None
    if isinstance(format, TableFormat):
        return None
    target = format.dtype if isinstance(format, IntFormat) else torch.float32
    like = torch.empty_like(torch.empty_strided(shape, strides, device="meta")).stride()
    path = walk(shape, strides, like, block, rounding.random_bits > 0, runs)
    if path is None:
        return None
    numbers = SOURCES[dtype], TARGETS[target], MODES[rounding.mode]
    known, words = constants(format, scaled, momentum), (*path[:5], *path.outer)
    return Plan(target, like, compact_shape(shape, block), numbers, path, words, known)


@lru_cache(maxsize=256)
def constants(
    format: IntFormat | FloatFormat, scaled: bool = True, momentum: float = 0.0
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


def remembered(
    rule: RangeRule | None, running: bool, training: bool
) -> tuple[RangeRule | None, float | None, bool]:
    """The rule of one tensor's range, and of a running one that counts it in, where there is its
    memory, the momentum and whether it is the quantizer's."""
    if not running or not isinstance(rule, Ema) or rule.use != "current":
        return rule, None, False
    return rule.rule, rule.momentum, not training or rule.train_on != "batch"


class Whole(NamedTuple):
    """block              sizes of a granule
    compact, steps     shape and strides of the scales
    shifted            whether there are zero points
    cut                the block of the walk's granules: those of the factor, where there is one
    plan               of the elements
    """

    block: tuple[int, ...]
    compact: tuple[int, ...]
    steps: tuple[int, ...]
    shifted: bool
    cut: tuple[int, ...]
    plan: Plan


@lru_cache(maxsize=4096)
def plan_whole(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    granularity: Granularity,
    format: Format,
    rounding: Rounding,
    momentum: float | None,
    factor: tuple[int, ...] | None,
) -> Whole | None:
    """For a quantizer by extremes; None where no kernel serves it.

    momentum: of a running range; factor: the shape of what x is multiplied with, one granule only.
    """
    block = granularity.block_shape(shape)
    compact = compact_shape(shape, block)
    granules = math.prod(compact)
    if granules > 1 and (factor is not None or momentum is not None):
        return None
    cut = block
    if factor is not None:
        if len(factor) != len(shape):
            return None
        cut = tuple(
            1 if part > 1 else max(size, 1) for part, size in zip(factor, shape, strict=True)
        )
        if compact_shape(shape, cut) != factor:
            return None
    found = plan(dtype, shape, strides, cut, format, rounding, True, momentum or 0.0)
    if found is None or (granules > 1 and not is_granule_major(found.walk)):
        return None
    shifted = isinstance(format, IntFormat) and not format.symmetric
    return Whole(block, compact, contiguous(compact), shifted, cut, found)
