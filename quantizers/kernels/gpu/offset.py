"""A quantizer with a real offset by the extremes of a tensor, or of granules: two launches."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from quantizers.devices.by_device import restored
from quantizers.formats import fp32
from quantizers.ranges.rules import AbsMax, MinMax, State
from quantizers.settings import Settings

from ..plan import Plan, plan_whole
from .device import OPTIONS, RANGE, power_of_two, serves, there
from .elements import BLOCK, MAKERS, path, programs_of
from .extremes import PARTS
from .launcher import Launch

_KERNELS = "quantizers.kernels.gpu.triton_offset"
_Grid = tuple[int, int, int]


class Offset(NamedTuple):
    """What quantizes tensors of one dtype, shape and layout; ends: numbers of the extremes."""

    plan: Plan
    ends: int
    extremes: tuple[Launch, _Grid]
    values: tuple[Launch, _Grid]

    def __call__(self, x: Tensor, key: Tensor | None) -> Tensor:
        made = torch.empty_strided(x.shape, self.plan.strides, dtype=torch.float32, device=x.device)
        ends = torch.empty(self.ends, dtype=torch.int32, device=x.device)
        (first, parts), (second, programs) = self.extremes, self.values
        with there(x):
            first(parts, x, ends, *(x,) * 5)
            second(programs, x, made, x if key is None else key, ends)
        return made


@lru_cache(maxsize=1024)
def plan(
    dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...], spec: str
) -> Offset | None:
    """For the affine quantizer's `spec`; None where no kernel serves: ranges with a memory or of
    chunks, other roundings than to nearest even and stochastic."""
    by = restored(spec)
    rounding = by.rounding
    if type(by.range) not in (AbsMax, MinMax) or rounding.mode not in _MODES:
        return None
    known = plan_whole(dtype, shape, strides, by.granularity, fp32, rounding, None, None)
    own = None if known is None else path(known.plan, fp32, rounding, shape, strides)
    if known is None or own is None:
        return None
    granules = math.prod(known.compact)
    each = own.plan.walk.size // granules
    parts, steps = programs_of(each, PARTS)
    first = Launch(
        RANGE, "extremes", (each, *own.words), AXES=own.axes, FOLDED=False, RUNNING=False,
        STEPS=steps, UNIT=own.unit(each), BLOCK=BLOCK, num_warps=8, **OPTIONS,
    )  # fmt: skip
    makers, steps = programs_of(each, MAKERS)
    levels = float(by.format.high - by.format.low)
    second = Launch(
        _KERNELS, "offset", (each, makers, parts, *own.words, levels), AXES=own.axes,
        SYMMETRIC=type(by.range) is AbsMax, RANDOM=rounding.random_bits, SIZE=power_of_two(parts),
        STEPS=steps, BLOCK=BLOCK, num_warps=8, **OPTIONS,
    )  # fmt: skip
    ends = 2 * granules * parts
    grids = (granules, parts, 1), (granules * makers, 1, 1)
    return Offset(own.plan, ends, (first, grids[0]), (second, grids[1]))


_MODES = "nearest_even", "stochastic"


def values(
    x: Tensor, by: Settings, state: State | None, key: Tensor | None, training: bool
) -> Tensor | None:
    """See real_offset.values."""
    key = key if by.rounding.random_bits else None
    if by._spec is None or not serves(x, key):
        return None
    if by.rounding.random_bits and (key is None or key.dtype is not torch.int64 or key.dim()):
        return None
    found = plan(x.dtype, x.shape, x.stride(), by._spec)
    return None if found is None else found(x, key)
