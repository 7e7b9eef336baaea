"""The launches of a quantizer's Triton kernels."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantizers.by_device import restored
from quantizers.formats import FloatFormat, Format
from quantizers.ranges import AbsMax
from quantizers.rounding import Rounding
from quantizers.running_range import Ema

from ..layout import OUTER
from ..plan import Plan, plan, plan_whole
from .device import ELEMENTS, OPTIONS, RANGE, there
from .launcher import Launch

#: elements that a program takes at once
BLOCK = 4096
#: elements of a granule that one program takes from its extremes to its elements
SMALL = 8192
#: the most programs that look for a granule's extremes, and that make its elements
PARTS, MAKERS = 512, 2048


class Path(NamedTuple):
    """A plan, as the kernels take it.

    words, axes         of the walk over x and the elements
    constants, flags    of the format and the rounding
    """

    plan: Plan
    words: tuple[Any, ...]
    axes: int
    constants: tuple[float, ...]
    flags: dict[str, Any]


def path(
    found: Plan | None,
    format: Format,
    rounding: Rounding,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> Path | None:
    """None also where places in x pass int32, or all of the format are subnormal."""
    span = sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    if found is None or span >= 2**31 - BLOCK * max(PARTS, MAKERS) or format.largest < 2.0**-126:
        return None
    row = found.walk
    fields = [row.outer[start : start + OUTER] for start in range(0, 5 * OUTER, OUTER)]
    axes = next((OUTER - n for n, size in enumerate(fields[0]) if size != 1), 0)
    words: tuple[Any, ...] = row.row, row.index_step, row.granule_step
    words += tuple(tuple(field[OUTER - axes :]) or (1,) for field in fields)
    flags: dict[str, Any] = {"INTEGER": True, "ZERO": True, "INF": False}
    first, second, *others = found.constants[:8]
    constants = (first, second, 0.0, 0.0, 0.0)
    if isinstance(format, FloatFormat):
        largest, over, _, zero, smallest, infinite = others
        constants = (int(first), int(second), largest, over, smallest)
        flags = {"INTEGER": False, "ZERO": bool(zero), "INF": bool(infinite)}
    flags |= {"SIGNED": format.signed, "RANDOM": rounding.random_bits, "MODE": rounding.mode}
    return Path(found, words, axes, constants, flags)


def _programs(size: int, most: int) -> tuple[int, int]:
    """(programs, at most so many, blocks of each) that take `size` elements."""
    blocks = -(-size // BLOCK)
    steps = 1
    while blocks > steps * most:
        steps *= 2  # powers of two: a kernel is compiled for each
    return -(-blocks // steps), steps


class Elements(NamedTuple):
    """What makes the elements of tensors of one dtype, shape and layout, for given scales."""

    plan: Plan
    launch: Launch
    grid: tuple[int, int, int]

    def __call__(
        self, x: Tensor, scale: Tensor | None, zero_point: Tensor | None, key: Tensor | None
    ) -> Tensor:
        result = torch.empty_strided(
            x.shape, self.plan.strides, dtype=self.plan.dtype, device=x.device
        )
        scale, zero_point, key = (x if t is None else t for t in (scale, zero_point, key))
        with there(x):
            self.launch(self.grid, x, result, scale, zero_point, x, key, x, x, x, x, x, x)
        return result


@lru_cache(maxsize=4096)
def elements(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    block: tuple[int, ...],
    format: Format,
    rounding: Rounding,
    scaled: bool,
    shifted: bool,
) -> Elements | None:
    """None where no kernel serves."""
    found = plan(dtype, shape, strides, block, format, rounding, scaled)
    own = path(found, format, rounding, shape, strides)
    if own is None:
        return None
    size = own.plan.walk.size
    programs, steps = _programs(size, MAKERS)
    rule = dict.fromkeys(("MEASURED", "FOLDED", "SYMMETRIC", "RUNNING", "UPDATE", "USE"), False)
    launch = Launch(
        ELEMENTS, "elements", (size, programs, 1, *own.words, *own.constants, 0.0),
        AXES=own.axes, ALONE=math.prod(own.plan.compact) == 1, SCALED=scaled, AFFINE=shifted,
        **rule, **own.flags, SIZE=1, STEPS=steps, BLOCK=BLOCK, num_warps=8, **OPTIONS,
    )  # fmt: skip
    return Elements(own.plan, launch, (programs, 1, 1))


class Whole(NamedTuple):
    """What quantizes tensors of one dtype, shape and layout, by their extremes.

    block                  sizes of a granule
    scales                 shape and strides of the scales
    ends                   numbers that the extremes take, and the running range as it was
    extremes, elements     launches and their grids; no extremes where one program takes a granule
    """

    plan: Plan
    block: tuple[int, ...]
    scales: tuple[tuple[int, ...], tuple[int, ...]]
    shifted: bool
    ends: int
    extremes: tuple[Launch, tuple[int, int, int]] | None
    elements: tuple[Launch, tuple[int, int, int]]

    def __call__(
        self, x: Tensor, factor: Tensor | None, key: Tensor | None, running: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Elements, scale and zero point.

        running: low, high, share (fp32, one entry) and steps (int64) of a running range, which it
        may move (see running_range.Ema), or nothing.
        """
        path, device = self.plan, x.device
        made = torch.empty_strided(x.shape, path.strides, dtype=path.dtype, device=device)
        scale = torch.empty_strided(*self.scales, dtype=torch.float32, device=device)
        zero_point = None
        if self.shifted:
            zero_point = torch.empty_strided(*self.scales, dtype=torch.int32, device=device)
        shift = scale if zero_point is None else zero_point
        factor, key = x if factor is None else factor, x if key is None else key
        running = running or (scale,) * 4
        launch, grid = self.elements
        with there(x):
            if self.extremes is None:
                launch(grid, x, made, scale, shift, factor, key, *running)
            else:
                ends = torch.empty(self.ends + 3, dtype=torch.int32, device=device)
                kept = ends[self.ends :].view(torch.float32)
                first, programs = self.extremes
                first(programs, x, ends, factor, kept, *running[:3])
                launch(grid, x, made, scale, shift, factor, key, ends, kept, *running)
        return made, scale, zero_point


@lru_cache(maxsize=4096)
def whole(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    spec: str,
    running: bool,
    training: bool,
    factor: tuple[int, ...] | None,
) -> Whole | None:
    """For a quantizer's `spec`; factor: its shape.  None where no kernel serves."""
    by = restored(spec)
    format, rule, momentum = by.format, by.range, 0.0
    use = False
    if isinstance(rule, Ema):
        momentum, use = rule.momentum, not training or rule.train_on != "batch"
        rule = rule.rule
    known = plan_whole(
        dtype, shape, strides, by.granularity, format, by.rounding, momentum if running else None,
        factor,
    )  # fmt: skip
    if known is None:
        return None
    own = path(known.plan, format, by.rounding, shape, strides)
    if own is None:
        return None
    granules = math.prod(known.compact)
    each = own.plan.walk.size // granules
    numbers = (*own.words, *own.constants, momentum)
    constants = {
        "AXES": own.axes, "AFFINE": known.shifted, "FOLDED": factor is not None,
        "SYMMETRIC": type(rule) is AbsMax, "RUNNING": running, "UPDATE": running and training,
        "USE": running and use, **own.flags, "num_warps": 8, **OPTIONS,
    }  # fmt: skip
    scales = known.compact, known.steps
    if each <= SMALL:
        size = max(1 << (each - 1).bit_length(), 16)
        constants |= {"BLOCK": size, "num_warps": max(1, min(8, size // 256))}
        launch = Launch(ELEMENTS, "whole", (each, *numbers), **constants)
        last = launch, (granules, 1, 1)
        return Whole(own.plan, known.block, scales, known.shifted, 0, None, last)
    parts, steps = _programs(each, PARTS)
    first = Launch(
        RANGE, "extremes", (each, *own.words), AXES=own.axes, FOLDED=factor is not None,
        RUNNING=running, STEPS=steps, BLOCK=BLOCK, num_warps=8, **OPTIONS,
    )  # fmt: skip
    makers, steps = _programs(each, MAKERS)
    size = 1 << (parts - 1).bit_length()
    constants |= {
        "ALONE": False, "SCALED": True, "MEASURED": True, "SIZE": size, "STEPS": steps,
        "BLOCK": BLOCK,
    }  # fmt: skip
    launch = Launch(ELEMENTS, "elements", (each, makers, parts, *numbers), **constants)
    return Whole(
        own.plan, known.block, scales, known.shifted, 2 * granules * parts,
        (first, (granules, parts, 1)), (launch, (granules * makers, 1, 1)),
    )  # fmt: skip
