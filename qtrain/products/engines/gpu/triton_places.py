"""Where a program's tile of a convolution lies, and what it meets, within Triton kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile(
    rows, produced, WIDE: tl.constexpr, ROWS: tl.constexpr, ACROSS: tl.constexpr, BAND: tl.constexpr
):
    """A program's group, rows m and columns p, ROWS x ACROSS; BAND tiles share what they read.
    WIDE: the first two in int64."""
    columns = tl.cdiv(produced, ACROSS)
    tiles = tl.cdiv(rows, ROWS) * columns
    program, group = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    band = program // (BAND * columns)
    first = band * BAND
    size = min(tl.cdiv(rows, ROWS) - first, BAND)
    within = program % (BAND * columns)
    m = (first + within % size) * ROWS + tl.arange(0, ROWS)
    p = within // size * ACROSS + tl.arange(0, ACROSS)
    if WIDE:
        m, group = m.to(tl.int64), group.to(tl.int64)
    return group, m, p


@triton.jit
def met(
    oh, ow, r, s, height, width, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
    SCATTER: tl.constexpr,
):  # fmt: skip
    """Line and column of the input that a result (oh, ow) meets with the tap (r, s), and whether
    they are there: see geometry."""
    if SCATTER:
        th, tw = oh + padding_h - r * dilation_h, ow + padding_w - s * dilation_w
        h, v = th // stride_h, tw // stride_w
        there = (th >= 0) & (tw >= 0) & (th % stride_h == 0) & (tw % stride_w == 0)
    else:
        h = oh * stride_h - padding_h + r * dilation_h
        v = ow * stride_w - padding_w + s * dilation_w
        there = (h >= 0) & (v >= 0)
    return h, v, there & (h < height) & (v < width)
