"""Scale and zero point of a tensor by the extremes of its chunks: two launches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from quantizers.formats import Format, IntFormat

from ..plan import Whole
from ..serving import imported
from .device import OPTIONS, RANGE, there
from .launch import BLOCK, Path, Running

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


def measure(
    x: Tensor,
    found: Path,
    known: Whole,
    format: Format,
    chunks: int | None,
    running: Running | None,
) -> tuple[Tensor, Tensor | None] | None:
    """Scale and zero point of x, one granule, by ChunkedMinMax(chunks); None where its chunks are
    no runs of the walk."""
    if math.prod(known.compact) != 1:
        return None
    each = chunk_length(x.shape, x.stride(), chunks)
    if each is None:
        return None
    count = found.plan.walk.size // each
    steps = 1  # powers of two: a kernel is compiled for each
    while (parts := -(-each // (BLOCK * steps))) > 1 and count * parts > _MOST // 2:
        steps *= 2
    sizes = [1 << (n - 1).bit_length() for n in (count, parts)]
    if math.prod(sizes) > _MOST:
        return None
    ends = torch.empty((2, count, parts), dtype=torch.int32, device=x.device)
    scale = torch.empty_strided(known.compact, known.steps, dtype=torch.float32, device=x.device)
    zero_point = torch.empty_like(scale, dtype=torch.int32) if known.shifted else None
    low, high, share, moves = (scale,) * 4 if running is None else running[:4]
    with there(x):
        imported(RANGE).extremes[(count, parts)](
            x,
            scale,
            ends[0],
            ends[1],
            each,
            *found.words,
            AXES=found.axes,
            FOLDED=False,
            STEPS=steps,
            BLOCK=BLOCK,
            num_warps=8,
            **OPTIONS,
        )
        imported(CHUNKS).chunked_scale[(1,)](
            ends[0],
            ends[1],
            scale,
            scale if zero_point is None else zero_point,
            parts,
            count,
            float(format.low) if isinstance(format, IntFormat) else 0.0,
            float(format.largest),
            low,
            high,
            share,
            moves,
            0.0 if running is None else running.momentum,
            RUNNING=running is not None,
            UPDATE=running is not None and running.update,
            USE=running is not None and running.use,
            AFFINE=known.shifted,
            SIGNED=format.signed,
            CHUNKS=sizes[0],
            PARTS=sizes[1],
            num_warps=4,
            **OPTIONS,
        )
    return scale, zero_point
