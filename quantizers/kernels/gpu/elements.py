"""Elements for given scales in one launch, and what their walk is to a kernel."""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantizers.formats import FloatFormat, Format, IntFormat, TableFormat
from quantizers.rounding import Rounding

from ..layout import OUTER
from ..plan import Plan, plan
from .device import ELEMENTS, OPTIONS, there
from .launcher import Launch

#: elements that a program takes at once
BLOCK = 4096
#: of a kernel that makes no scale: momentum, window, reach, prescale, rule, its format
_NO_RULE = 0.0, 0, 1.0, 1.0, (1.0,), (1.0,)
#: elements that a thread may take side by side
_UNIT = 16
#: the most programs that make a granule's elements
MAKERS = 2048


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

    def unit(self, each: int) -> int:
        """How many elements of granules of `each` lie side by side in x and in the result, from
        every multiple of as many on, where rows are to be found: their place is found once."""
        row, _, _, _, x_steps, result_steps, *_ = self.words
        ragged = any(number % _UNIT for number in (each, row, *x_steps, *result_steps))
        return 1 if ragged or not self.axes else _UNIT


def path(
    found: Plan | None,
    format: Format,
    rounding: Rounding,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> Path | None:
    """None also where places in x pass int32, or all of the format are subnormal."""
    span = sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    if found is None or span >= 2**31 - BLOCK * MAKERS or format.largest < 2.0**-126:
        return None
    assert not isinstance(format, TableFormat)  # which has no plan
    row = found.walk
    fields = [row.outer[start : start + OUTER] for start in range(0, 5 * OUTER, OUTER)]
    axes = next((OUTER - n for n, size in enumerate(fields[0]) if size != 1), 0)
    words: tuple[Any, ...] = row.row, row.index_step, row.granule_step
    words += tuple(tuple(field[OUTER - axes :]) or (1,) for field in fields)
    return Path(found, words, axes, *known_of(format, rounding, found.constants))


def known_of(
    format: IntFormat | FloatFormat, rounding: Rounding, found: ctypes.Array[ctypes.c_float]
) -> tuple[tuple[float, ...], dict[str, Any]]:
    """Numbers and flags of a format and a rounding, as kernels take them, of its
    `plan.constants`."""
    flags: dict[str, Any] = {"INTEGER": True, "ZERO": True, "INF": False}
    first, second, *others = found[:8]
    mode: str = rounding.mode
    constants = (first, second, 0.0, 0.0, 0.0)
    if isinstance(format, FloatFormat):
        largest, over, _, zero, smallest, infinite = others
        constants = (int(first), int(second), largest, over, smallest)
        flags = {"INTEGER": False, "ZERO": bool(zero), "INF": bool(infinite)}
        if mode == "nearest_even" and second >= -126 and format.largest <= 2.0**100:
            mode = "near"
    flags |= {"SIGNED": format.signed, "RANDOM": rounding.random_bits, "MODE": mode}
    return constants, flags


def programs_of(size: int, most: int) -> tuple[int, int]:
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
            self.launch(self.grid, x, result, scale, zero_point, x, x, key, *(x,) * 8)
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
    multiplied: bool = False,
) -> Elements | None:
    """multiplied: x * scale in the place of x / scale.  None where no kernel serves."""
    found = plan(dtype, shape, strides, block, format, rounding, scaled)
    own = path(found, format, rounding, shape, strides)
    if own is None:
        return None
    size = own.plan.walk.size
    programs, steps = programs_of(size, MAKERS)
    off = (
        "MEASURED", "FOLDED", "SYMMETRIC", "RUNNING", "UPDATE", "USE", "PRESCALED", "POWER",
        "NARROW", "S_SIGNED", "S_ZERO", "S_INF",
    )  # fmt: skip
    rule = {**dict.fromkeys(off, False), "PAST": "", "WINDOW": 0, "LEVELS": 1, "S_MODE": ""}
    rule["RECIPROCAL"] = multiplied
    launch = Launch(
        ELEMENTS, "elements", (size, programs, 1, *own.words, *own.constants, *_NO_RULE),
        AXES=own.axes, ALONE=math.prod(own.plan.compact) == 1, SCALED=scaled, AFFINE=shifted,
        **rule, **own.flags, SIZE=1, STEPS=steps, UNIT=own.unit(size), BLOCK=BLOCK,
        num_warps=8, **OPTIONS,
    )  # fmt: skip
    return Elements(own.plan, launch, (programs, 1, 1))
