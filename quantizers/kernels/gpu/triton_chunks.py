"""Triton kernel of the scale that follows from the extremes of a tensor's chunks."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_numbers import is_finite, larger, nearest, number
from .triton_range import _range


@triton.jit
def _mean(key, inside, count):
    """Of each row's number, in fp64, as fp32; key: ordered, (rows)."""
    ends = tl.where(inside, number(key).to(tl.float64), 0.0)
    return (tl.sum(ends, 0) / count.to(tl.float64)).to(tl.float32)


@triton.jit(do_not_specialize=["parts", "chunks"])
def chunked_scale(
    low,
    high,
    scale,
    zero_point,
    parts,
    chunks,
    lowest,
    largest,
    running_low,
    running_high,
    running_share,
    running_steps,
    momentum,
    RUNNING: tl.constexpr,
    UPDATE: tl.constexpr,
    USE: tl.constexpr,
    AFFINE: tl.constexpr,
    SIGNED: tl.constexpr,
    CHUNKS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Scale and zero point of a tensor whose range is the mean of its chunks' extremes.

    low, high: of each chunk's parts, ordered (int32), (chunks, parts); CHUNKS, PARTS: powers of
    two, at least those.  The rest as `triton_range.scales`.

    A sum of fp64 numbers depends on its order where they lie further apart than 2^29 / chunks;
    nearer together it is exact, whatever the order.
    """
    chunk, part = tl.arange(0, CHUNKS), tl.arange(0, PARTS)
    slot = chunk[:, None] * parts + part[None, :]
    inside = (chunk < chunks)[:, None] & (part < parts)[None, :]
    least = tl.min(tl.load(low + slot, mask=inside, other=0x7FFFFFFF), 1)
    most = tl.max(tl.load(high + slot, mask=inside, other=-0x80000000), 1)
    least, most = _mean(least, chunk < chunks, chunks), _mean(most, chunk < chunks, chunks)
    least, most = _range(
        least, most, running_low, running_high, running_share, running_steps, momentum, False,
        RUNNING, UPDATE, USE,
    )  # fmt: skip
    if AFFINE:
        least = tl.where(least > 0.0, 0.0, least)
        most = tl.where(most < 0.0, 0.0, most)
        found = tl.div_rn(most * 0.5 - least * 0.5, (largest - lowest) * 0.5)
        divisor = tl.where(found == 0.0, float("inf"), found)
        zero = lowest - nearest(tl.div_rn(least, divisor))
        zero = tl.where(zero < lowest, lowest, zero)
        zero = tl.where(zero > largest, largest, zero)
        tl.store(zero_point, tl.where(zero == zero, zero, 0.0).to(tl.int32))
    else:
        if SIGNED:
            width = larger(tl.abs(least), tl.abs(most))
        else:
            width = tl.where(most < 0.0, 0.0, most)
            width = tl.where(is_finite(least), width, float("nan"))
        found = tl.div_rn(width, largest)
        beyond = (found == float("inf")) & (width < float("inf"))
        found = tl.where(beyond, 3.4028234663852886e38, found)
    tl.store(scale, found)
