"""The launches of a quantizer's Triton kernels."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantizers.formats import FloatFormat, Format, IntFormat
from quantizers.rounding import Rounding

from ..layout import OUTER
from ..plan import Plan, Whole, plan
from ..serving import imported
from .device import ELEMENTS, OPTIONS, RANGE, there

#: elements of a program, and the most programs that look for a tensor's extremes
BLOCK, PARTS = 2048, 1024


class Path(NamedTuple):
    """A plan, as the kernels take it.

    words, axes         of the walk over x and the elements
    constants, flags    of `elements`
    """

    plan: Plan
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
    """See plan; None also where places in x pass int32, or all of the format are subnormal."""
    found = plan(dtype, shape, strides, block, format, rounding, scaled)
    span = sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    if found is None or span >= 2**31 - BLOCK * PARTS or format.largest < 2.0**-126:
        return None
    row = found.walk
    fields = [row.outer[start : start + OUTER] for start in range(0, 5 * OUTER, OUTER)]
    axes = next((OUTER - n for n, size in enumerate(fields[0]) if size != 1), 0)
    words: tuple[Any, ...] = row.row, row.index_step, row.granule_step
    words += tuple(tuple(field[OUTER - axes :]) or (1,) for field in fields)
    flags: dict[str, Any] = {"INTEGER": True, "SIGNED": False, "ZERO": True, "INF": False}
    first, second, *others = found.constants[:8]
    constants = (first, second, 0.0, 0.0, 0.0)
    if isinstance(format, FloatFormat):
        largest, over, signed, zero, smallest, infinite = others
        constants = (int(first), int(second), largest, over, smallest)
        flags = {
            "INTEGER": False,
            "SIGNED": bool(signed),
            "ZERO": bool(zero),
            "INF": bool(infinite),
        }
    flags |= {"RANDOM": rounding.random_bits, "MODE": rounding.mode}
    return Path(found, words, axes, constants, flags)


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
    result = torch.empty_strided(
        x.shape, found.plan.strides, dtype=found.plan.dtype, device=x.device
    )
    nothing = x if scale is None else scale
    size = found.plan.walk.size
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
    known: Whole,
    format: Format,
    symmetric: bool,
    running: Running | None,
    factor: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point of x's granules, which follow one another along the walk."""
    granules = math.prod(known.compact)
    each = found.plan.walk.size // granules
    parts, steps = _programs(each)
    ends = torch.empty((2, granules, parts), dtype=torch.int32, device=x.device)
    scale = torch.empty_strided(known.compact, known.steps, dtype=torch.float32, device=x.device)
    zero_point = torch.empty_like(scale, dtype=torch.int32) if known.shifted else None
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
            AFFINE=known.shifted,
            SIGNED=format.signed,
            SIZE=1 << max(parts - 1, 0).bit_length(),
            **OPTIONS,
        )
    return scale, zero_point
