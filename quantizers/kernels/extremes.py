"""The ranges of blocks that lie in memory as runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quantizers.devices.memory import serves

from . import team
from .serving import SOURCES, made


def extremes(x: Tensor, block: Sequence[int]) -> tuple[Tensor, Tensor] | None:
    """(min x, max x) of each block, fp32, in C order; NaN both, where it has one.

    x: fp16, bf16 or fp32, in C order, each block a run of it.  None where no kernel serves it.
    """
    source = SOURCES.get(x.dtype)
    length = _run(tuple(x.shape), tuple(block))
    if source is None or length is None or not x.is_contiguous() or not serves(x):
        return None
    kernel = made("quantizers.kernels.compiled_extremes", "extremes", source)
    if kernel is None:
        return None
    low, high = x.new_empty((2, x.numel() // length), dtype=torch.float32)
    words = low.numel(), length, x.data_ptr(), low.data_ptr(), high.data_ptr()
    team.run(kernel.address, team.packed(*words), x.numel())
    return low, high


def _run(shape: tuple[int, ...], block: tuple[int, ...]) -> int | None:
    """Elements of a block, where it is a run of a tensor in C order."""
    length, cut = 1, False
    for size, b in zip(reversed(shape), reversed(block), strict=True):
        if (cut and b != 1) or size % b or size == 0:
            return None
        length, cut = length * b, cut or b < size
    return length
