"""The ranges of blocks of matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from quantizers.devices.memory import serves
from quantizers.granularity import compact_shape

from . import team
from .serving import SOURCES, made


def extremes(x: Tensor, block: Sequence[int]) -> tuple[Tensor, Tensor] | None:
    """(min x, max x) of each block, fp32, in C order; NaN both, where it has one.

    x: fp16, bf16 or fp32, in C order, cut along two axes at most.  None where no kernel serves it.
    """
    source, cut = SOURCES.get(x.dtype), _matrices(tuple(x.shape), tuple(block))
    if source is None or cut is None or not x.is_contiguous() or not serves(x):
        return None
    kernel = made("quantizers.kernels.compiled_extremes", "extremes", source)
    if kernel is None:
        return None
    low, high = x.new_empty((2, math.prod(compact_shape(x.shape, block))), dtype=torch.float32)
    words = *cut, x.data_ptr(), low.data_ptr(), high.data_ptr()
    team.run(kernel.address, team.packed(*words), x.numel())
    return low, high


@lru_cache(maxsize=4096)
def _matrices(shape: tuple[int, ...], block: tuple[int, ...]) -> tuple[int, ...] | None:
    """A tensor in C order as matrices cut into blocks: how many, rows, terms, rows and terms of a
    block; None where it is not that, or empty."""
    axes = [(1, 1)]  # innermost first
    for size, b in zip(reversed(shape), reversed(block), strict=True):
        above, cut = axes[-1]
        if above == cut:
            axes[-1] = above * size, cut * b
        elif b == 1 and above % cut == 0:
            axes[-1] = above * size, cut
        else:
            axes.append((size, b))
    axes += [(1, 1)] * (3 - len(axes))
    (terms, step), (rows, across), (count, one) = axes[:3]
    if len(axes) > 3 or one != 1 or 0 in shape:
        return None
    return count, rows, terms, across, step
