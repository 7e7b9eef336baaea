"""A quantizer by the extremes of a tensor, or of granules: one launch or two."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from quantizers.devices.by_device import restored
from quantizers.formats import Format
from quantizers.qtensor import QTensor
from quantizers.ranges.rules import AbsMax

from ..plan import Plan, plan_whole
from ..serving import is_dense
from .device import ELEMENTS, OPTIONS, RANGE, power_of_two, there
from .elements import BLOCK, MAKERS, path, programs_of
from .launcher import Launch
from .memory import memory_of
from .rules import rule_of

#: elements of a granule that one program takes from its extremes to its elements
SMALL = 8192
#: the most programs that look for a granule's extremes
PARTS = 512


class Whole(NamedTuple):
    """What quantizes tensors of one dtype, shape and layout, by their extremes: see whole.Planned.

    block                  sizes of a granule
    scales                 shape and strides of the scales
    outer                  whether there is a scale of the scales, or a constant in its place
    ends                   numbers that the extremes take, and the running range as it was
    extremes, elements     launches and their grids; no extremes where one program takes a granule
    """

    plan: Plan
    format: Format
    block: tuple[int, ...]
    scales: tuple[tuple[int, ...], tuple[int, ...]]
    shifted: bool
    outer: bool
    ends: int
    extremes: tuple[Launch, tuple[int, int, int]] | None
    elements: tuple[Launch, tuple[int, int, int]]

    def __call__(
        self, x: Tensor, factor: Tensor | None, key: Tensor | None, running: tuple[Tensor, ...]
    ) -> QTensor:
        path, device = self.plan, x.device
        factor = None if factor is None else factor.contiguous()
        made = torch.empty_strided(x.shape, path.strides, dtype=path.dtype, device=device)
        scale = torch.empty_strided(*self.scales, dtype=torch.float32, device=device)
        zero_point = None
        if self.shifted:
            zero_point = torch.empty_strided(*self.scales, dtype=torch.int32, device=device)
        outer = None
        if self.outer:
            outer = torch.empty([1] * x.dim(), dtype=torch.float32, device=device)
        shift, over = (scale if part is None else part for part in (zero_point, outer))
        factor, key = x if factor is None else factor, x if key is None else key
        running += (scale,) * (6 - len(running))
        launch, grid = self.elements
        with there(x):
            if self.extremes is None:
                launch(grid, x, made, scale, shift, over, factor, key, *running)
            else:
                ends = torch.empty(self.ends + 3, dtype=torch.int32, device=device)
                kept = ends[self.ends :].view(torch.float32)
                first, programs = self.extremes
                first(programs, x, ends, factor, kept, *running[:3])
                launch(grid, x, made, scale, shift, over, factor, key, ends, kept, *running)
        return QTensor(made, scale, zero_point, self.format, self.block, outer)


def _like(shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    return torch.empty_strided(shape, strides, device="meta")


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
    format = by.format
    memory = memory_of(by.range, running, training)
    known = plan_whole(
        dtype, shape, strides, by.granularity, format, by.rounding, memory.momentum, factor
    )
    if known is None:
        return None
    own = path(known.plan, format, by.rounding, shape, strides)
    rule, granules = rule_of(by.scale, format), math.prod(known.compact)
    if own is None or rule is None or rule.tops or (by.scale.over is not None and granules > 1):
        return None
    each = own.plan.walk.size // granules
    past = memory.momentum or 0.0, memory.window
    numbers = (*own.words, *own.constants, *past, *rule.numbers)
    constants = {
        "AXES": own.axes, "AFFINE": known.shifted, "FOLDED": factor is not None,
        "SYMMETRIC": type(memory.rule) is AbsMax, **memory.flags, **rule.flags, **own.flags,
        "num_warps": 8, **OPTIONS,
    }  # fmt: skip
    scales = known.compact, known.steps
    if each <= SMALL:
        size = max(power_of_two(each), 16)
        warps = max(1, min(8, max(size, 2 * memory.flags["WINDOW"]) // 256))
        constants |= {"BLOCK": size, "num_warps": warps}
        launch = Launch(ELEMENTS, "whole", (each, *numbers), **constants)
        last = launch, (granules, 1, 1)
        return Whole(
            own.plan, format, known.block, scales, known.shifted, by.scale.outer, 0, None, last
        )
    parts, steps = programs_of(each, PARTS)
    words, axes, unit = own.words, own.axes, own.unit(each)
    if granules == 1 and factor is None and is_dense(_like(shape, strides)):
        # which element is which does not matter: memory is read from its start to its end
        words, axes, unit = (each, 1, 0, *((1,),) * 5), 0, 1
    first = Launch(
        RANGE, "extremes", (each, *words), AXES=axes, FOLDED=factor is not None, RUNNING=running,
        STEPS=steps, UNIT=unit, BLOCK=BLOCK, num_warps=8, **OPTIONS,
    )  # fmt: skip
    makers, steps = programs_of(each, MAKERS)
    size = power_of_two(parts)
    constants |= {
        "ALONE": False, "SCALED": True, "MEASURED": True, "SIZE": size, "STEPS": steps,
        "UNIT": own.unit(each), "BLOCK": BLOCK,
    }  # fmt: skip
    launch = Launch(ELEMENTS, "elements", (each, makers, parts, *numbers), **constants)
    return Whole(
        own.plan, format, known.block, scales, known.shifted, by.scale.outer, 2 * granules * parts,
        (first, (granules, parts, 1)), (launch, (granules * makers, 1, 1)),
    )  # fmt: skip
