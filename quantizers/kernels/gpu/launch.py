"""The launches of a quantizer's Triton kernels."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantizers.formats import Format, IntFormat
from quantizers.granularity import compact_shape
from quantizers.rounding import Rounding

from ..layout import OUTER, Walk, contiguous, is_granule_major, walk
from ..serving import imported
from .device import ELEMENTS, OPTIONS, RANGE, there

#: elements of a program, and the most programs that look for a tensor's extremes
BLOCK, PARTS = 2048, 1024
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Path(NamedTuple):
    """How kernels walk a tensor and what they know of a format.

    dtype, strides   of the elements
    walk             over x and the elements; words, axes: as the kernels take it
    constants, flags    of `elements`
    """

    dtype: torch.dtype
    strides: tuple[int, ...]
    walk: Walk
    words: tuple[Any, ...]
    axes: int
    constants: tuple[float, ...]
    flags: dict[str, Any]


@lru_cache(maxsize=4096)
def path(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    block: tuple[int, ...],
    format: Format,
    rounding: Rounding,
    scaled: bool,
) -> Path | None:
    """For a tensor x; None where no kernel serves it.  The elements are laid out as empty_like(x);
    block: the size of the walk's granules; scaled: whether to the format."""
    if dtype not in _DTYPES or 0 in shape or format.largest < 2.0**-126:
        return None
    like = torch.empty_like(torch.empty_strided(shape, strides, device="meta")).stride()
    found = walk(shape, strides, like, block, rounding.random_bits > 0)
    span = sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    if found is None or span >= 2**31 - BLOCK * PARTS:
        return None
    fields = [found.outer[start : start + OUTER] for start in range(0, 5 * OUTER, OUTER)]
    axes = next((OUTER - n for n, size in enumerate(fields[0]) if size != 1), 0)
    words = (found.row, found.index_step, found.granule_step)
    outer = tuple(tuple(field[OUTER - axes :]) or (1,) for field in fields)
    integer = isinstance(format, IntFormat)
    flags = {"INTEGER": integer, "RANDOM": rounding.random_bits, "MODE": rounding.mode}
    constants: tuple[float, ...]
    if isinstance(format, IntFormat):
        target = format.dtype
        constants = float(format.low), float(format.high), 0.0, 0.0, 0.0
        flags |= {"SIGNED": False, "ZERO": True, "INF": False}
    else:
        target = torch.float32
        rule = format.when_clipped if scaled else format.on_overflow
        over = {"inf": math.inf, "nan": math.nan, "saturate": format.largest}[rule]
        constants = (
            format.mantissa, format.min_exponent, format.largest, over, format.smallest
        )  # fmt: skip
        flags |= {"SIGNED": format.signed, "ZERO": format.zero, "INF": format.has_inf}
    return Path(target, like, found, words + outer, axes, constants, flags)


def _programs(size: int) -> tuple[int, int]:
    """(programs, blocks of each) that look for the extremes of `size` elements."""
    blocks = -(-size // BLOCK)
    steps = 1
    while blocks > steps * PARTS:
        steps *= 2  # powers of two: a kernel is compiled for each
    return -(-blocks // steps), steps


def make(
    x: Tensor,
    found: Path,
    scale: Tensor | None,
    zero_point: Tensor | None,
    factor: Tensor | None,
    key: Tensor | None,
) -> Tensor:
    """The elements of x, whose path is `found`."""
    result = torch.empty_strided(x.shape, found.strides, dtype=found.dtype, device=x.device)
    nothing = x if scale is None else scale
    size = found.walk.size
    with there(x):
        imported(ELEMENTS).elements[(-(-size // BLOCK),)](
            x,
            result,
            nothing,
            nothing if zero_point is None else zero_point,
            nothing if factor is None else factor,
            nothing if key is None else key,
            size,
            *found.words,
            *found.constants,
            AXES=found.axes,
            ALONE=scale is None or scale.numel() == 1,
            SCALED=scale is not None,
            AFFINE=zero_point is not None,
            FOLDED=factor is not None,
            BLOCK=BLOCK,
            num_warps=8,
            **found.flags,
            **OPTIONS,
        )
    return result


class Running(NamedTuple):
    """A running range: see running_range.Ema; fp32, one entry, and steps, int64."""

    low: Tensor
    high: Tensor
    share: Tensor
    steps: Tensor
    momentum: float
    update: bool
    use: bool


def measure(
    x: Tensor,
    found: Path,
    granules: int,
    format: Format,
    symmetric: bool,
    running: Running | None,
    factor: Tensor | None,
    compact: tuple[int, ...],
) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point of x's granules, which follow one another along the walk."""
    each = found.walk.size // granules
    parts, steps = _programs(each)
    ends = torch.empty((2, granules, parts), dtype=torch.int32, device=x.device)
    scale = torch.empty_strided(compact, contiguous(compact), dtype=torch.float32, device=x.device)
    affine = isinstance(format, IntFormat) and not format.symmetric
    zero_point = torch.empty_like(scale, dtype=torch.int32) if affine else None
    low, high, share, count = (scale,) * 4 if running is None else running[:4]
    with there(x):
        imported(RANGE).extremes[(granules, parts)](
            x,
            scale if factor is None else factor,
            ends[0],
            ends[1],
            each,
            *found.words,
            AXES=found.axes,
            FOLDED=factor is not None,
            STEPS=steps,
            BLOCK=BLOCK,
            num_warps=8,
            **OPTIONS,
        )
        imported(RANGE).scales[(granules,)](
            ends[0],
            ends[1],
            scale,
            scale if zero_point is None else zero_point,
            parts,
            float(format.low) if isinstance(format, IntFormat) else 0.0,
            float(format.largest),
            low,
            high,
            share,
            count,
            0.0 if running is None else running.momentum,
            SYMMETRIC=symmetric,
            RUNNING=running is not None,
            UPDATE=running is not None and running.update,
            USE=running is not None and running.use,
            AFFINE=affine,
            SIGNED=format.signed,
            SIZE=1 << max(parts - 1, 0).bit_length(),
            **OPTIONS,
        )
    return scale, zero_point


def granule_major(found: Path, shape: tuple[int, ...], block: tuple[int, ...]) -> int | None:
    """How many granules x has where they follow one another along the walk; else None."""
    granules = math.prod(compact_shape(shape, block))
    return granules if granules == 1 or is_granule_major(found.walk) else None
