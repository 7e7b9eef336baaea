"""A quantizer by the extremes of a tensor's chunks: three launches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from quantizers.devices.by_device import restored
from quantizers.formats import Format
from quantizers.qtensor import QTensor
from quantizers.ranges.rules import ChunkedMinMax

from ..plan import plan_whole
from .device import OPTIONS, RANGE, power_of_two, there
from .elements import BLOCK, Elements, elements, path
from .launcher import Launch
from .memory import memory_of
from .rules import rule_of

CHUNKS = "quantizers.kernels.gpu.triton_chunks"
#: the most extremes that one program reduces
_MOST = 8192


def chunk_length(shape: Sequence[int], strides: Sequence[int], chunks: int | None) -> int | None:
    """How many elements of a chunk follow one another in a walk over x in the order of its memory;
    None where they do not, or the last chunk is shorter.

    chunks: see ChunkedMinMax.
    """
    size = math.prod(shape)
    length = -(-size // (chunks or (shape[0] if shape else 1)))
    if size % length:
        return None
    steps = [step for n, step in zip(shape, strides, strict=True) if n > 1]
    in_order = all(a > b for a, b in itertools.pairwise(steps))
    samples = bool(shape) and length % math.prod(shape[1:]) == 0
    if in_order or length == size or (samples and steps[0] > max(steps[1:], default=0)):
        return length
    return None


class Chunked(NamedTuple):
    """What quantizes tensors of one dtype, shape and layout, as extremes.Whole does.

    scales              shape and strides of the scales
    ends                numbers that the extremes take
    extremes, scale     launches, and the grid of the first
    """

    format: Format
    block: tuple[int, ...]
    scales: tuple[tuple[int, ...], tuple[int, ...]]
    shifted: bool
    ends: int
    extremes: tuple[Launch, tuple[int, int, int]]
    scale: Launch
    elements: Elements

    def __call__(
        self, x: Tensor, factor: Tensor | None, key: Tensor | None, running: tuple[Tensor, ...]
    ) -> QTensor:
        """See whole.Planned; factor: None."""
        scale = torch.empty_strided(*self.scales, dtype=torch.float32, device=x.device)
        zero_point = torch.empty_like(scale, dtype=torch.int32) if self.shifted else None
        ends = torch.empty(self.ends, dtype=torch.int32, device=x.device)
        first, programs = self.extremes
        shift = scale if zero_point is None else zero_point
        with there(x):
            first(programs, x, ends, x, x, x, x, x)
            running += (scale,) * (6 - len(running))
            self.scale((1, 1, 1), ends, scale, shift, *running)
        elements = self.elements(x, scale, zero_point, key)
        return QTensor(elements, scale, zero_point, self.format, self.block)


@lru_cache(maxsize=4096)
def whole(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    spec: str,
    running: bool,
    training: bool,
    factor: tuple[int, ...] | None,
) -> Chunked | None:
    """For a quantizer's `spec`; factor: None.  None where no kernel serves, or chunks are no runs
    of the walk."""
    by = restored(spec)
    format = by.format
    memory = memory_of(by.range, running, training)
    known = plan_whole(
        dtype, shape, strides, by.granularity, format, by.rounding, memory.momentum, factor
    )
    if known is None or not by.scale.simple or factor is not None or math.prod(known.compact) != 1:
        return None
    assert isinstance(memory.rule, ChunkedMinMax)
    own = path(known.plan, format, by.rounding, shape, strides)
    made = elements(dtype, shape, strides, known.block, format, by.rounding, True, known.shifted)
    each = chunk_length(shape, strides, memory.rule.chunks)
    rule = rule_of(by.scale, format)
    if own is None or made is None or each is None or rule is None:
        return None
    count = own.plan.walk.size // each
    steps = 1  # powers of two: a kernel is compiled for each
    while (parts := -(-each // (BLOCK * steps))) > 1 and count * parts > _MOST // 2:
        steps *= 2
    sizes = [power_of_two(n) for n in (count, parts)]
    if math.prod(sizes) > _MOST:
        return None
    first = Launch(
        RANGE, "extremes", (each, *own.words), AXES=own.axes, FOLDED=False, RUNNING=False,
        STEPS=steps, UNIT=own.unit(each), BLOCK=BLOCK, num_warps=8, **OPTIONS,
    )  # fmt: skip
    lowest, largest = own.constants[0] if known.shifted else 0.0, float(format.largest)
    scale = Launch(
        CHUNKS, "chunked_scale",
        (parts, count, lowest, largest, memory.momentum or 0.0, memory.window, *rule.numbers),
        **memory.flags, **rule.flags, AFFINE=known.shifted, SIGNED=format.signed, CHUNKS=sizes[0],
        PARTS=sizes[1], num_warps=4, **OPTIONS,
    )  # fmt: skip
    return Chunked(
        format, known.block, (known.compact, known.steps), known.shifted, 2 * count * parts,
        (first, (count, parts, 1)), scale, made,
    )  # fmt: skip
