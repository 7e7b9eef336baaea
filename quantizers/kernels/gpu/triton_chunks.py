"""Triton kernel of the scale that follows from the extremes of a tensor's chunks."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_numbers import number, ordered
from .triton_scale import spread


@triton.jit
def _mean(key, inside, count):
    """Of numbers, ordered, in fp64, rounded to fp32; ordered."""
    ends = tl.where(inside, number(key).to(tl.float64), 0.0)
    return ordered((tl.sum(ends, 0) / count.to(tl.float64)).to(tl.float32))


@triton.jit(do_not_specialize=["parts", "chunks", "window", "rule", "target"])
def chunked_scale(
    ends,
    scale,
    zero_point,
    running_low,
    running_high,
    running_share,
    running_steps,
    lows,
    highs,
    parts,
    chunks,
    lowest,
    largest,
    momentum,
    window,
    reach,
    prescale,
    rule,
    target,
    RUNNING: tl.constexpr,
    UPDATE: tl.constexpr,
    USE: tl.constexpr,
    PAST: tl.constexpr,
    WINDOW: tl.constexpr,
    LEVELS: tl.constexpr,
    RECIPROCAL: tl.constexpr,
    PRESCALED: tl.constexpr,
    POWER: tl.constexpr,
    NARROW: tl.constexpr,
    S_SIGNED: tl.constexpr,
    S_ZERO: tl.constexpr,
    S_INF: tl.constexpr,
    S_MODE: tl.constexpr,
    AFFINE: tl.constexpr,
    SIGNED: tl.constexpr,
    CHUNKS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Scale and zero point of a tensor whose range is the mean of its chunks' extremes.

    ends (chunks, 2, parts): of each chunk's parts, see triton_range.extremes; CHUNKS, PARTS:
    powers of two, at least those.  The rest as in triton_scale.spread.

    A sum of fp64 numbers depends on its order where they lie further apart than 2^29 / chunks;
    nearer together it is exact, whatever the order.
    """
    chunk, part = tl.arange(0, CHUNKS), tl.arange(0, PARTS)
    there = chunk < chunks
    slot = chunk[:, None] * (2 * parts) + part[None, :]
    inside = there[:, None] & (part < parts)[None, :]
    least = tl.min(tl.load(ends + slot, mask=inside, other=0x7FFFFFFF), 1)
    most = tl.max(tl.load(ends + parts + slot, mask=inside, other=-0x80000000), 1)
    spread(
        _mean(least, there, chunks), _mean(most, there, chunks), lowest, largest, scale,
        zero_point, scale, running_low, running_high, running_share, running_low, running_high,
        running_share, running_steps, lows, highs, tl.program_id(0) == 0, momentum, window, reach,
        prescale, rule, target, False, RUNNING, UPDATE, USE, PAST, WINDOW, AFFINE, SIGNED, LEVELS,
        RECIPROCAL, PRESCALED, POWER, NARROW, S_SIGNED, S_ZERO, S_INF, S_MODE,
    )  # fmt: skip
