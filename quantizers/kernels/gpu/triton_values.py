"""The Triton kernel of what elements stand for."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def values(
    x,
    result,
    zero_point,
    scale,
    size,
    AFFINE: tl.constexpr,
    SCALED: tl.constexpr,
    LIMITED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(x - zero_point) * scale in fp32, of integers or fp32 numbers; LIMITED: see QTensor."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    v = tl.load(x + i, mask=inside, other=0).to(tl.float32)
    if AFFINE:
        v = v - tl.load(zero_point).to(tl.float32)
    if SCALED:
        own = tl.load(scale)
        element = tl.abs(v)
        v = v * own
        if LIMITED:
            most = tl.where(tl.abs(own) < float("inf"), 3.4028234663852886e38, float("inf"))
            most = tl.where(element < float("inf"), most, float("inf"))  # what is infinite stays it
            v = tl.where(v > most, most, v)
            v = tl.where(v < -most, -most, v)
    tl.store(result + i, v, mask=inside)
