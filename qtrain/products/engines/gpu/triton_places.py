"""Where a program's tile of a convolution lies, and what it meets, within Triton kernels.

MOVES says how the kernel does, for what does not ask for a division or a test in each step:
"still" (one tap, which every result meets), "gather", "scatter" of strides of one, "scatter 2" of
two, "scatter any".
"""

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
def first_met(
    m, rows, out_height, out_width, stride_h, stride_w, padding_h, padding_w, MOVES: tl.constexpr
):
    """Of results m: image, line and column; and line and column of the input at the first tap, of
    a scatter before its strides divide them, out of reach for results beyond the last."""
    ow = m % out_width
    oh = (m // out_width) % out_height
    n = m // (out_width * out_height)
    if MOVES == "still" or MOVES == "gather":
        h, v = oh * stride_h - padding_h, ow * stride_w - padding_w
    else:
        h, v = oh + padding_h, ow + padding_w
    return n, oh, ow, tl.where(m < rows, h, -(2**30)).to(tl.int32), v.to(tl.int32)


@triton.jit
def met(h, v, height, width, stride_h, stride_w, MOVES: tl.constexpr):
    """Line and column of the input, of those before division, and whether they are there."""
    if MOVES == "scatter 2":
        whole = ((h | v) & 1) == 0
        h, v = h >> 1, v >> 1
    if MOVES == "scatter any":
        whole = (h % stride_h == 0) & (v % stride_w == 0)
        # what is negative and divided stays so
        h, v = h // stride_h, v // stride_w
    there = (h.to(tl.uint32) < height.to(tl.uint32)) & (v.to(tl.uint32) < width.to(tl.uint32))
    if MOVES == "scatter 2" or MOVES == "scatter any":
        there = there & whole
    return h, v, there


@triton.jit
def moved(k, r, s, deep, summed, taps_w, MOVES: tl.constexpr):
    """The next step's first channel, and its tap: after DEEP channels, or at the next tap."""
    k += deep
    if MOVES != "still":
        last = k >= summed
        k = tl.where(last, 0, k)
        s = tl.where(last, s + 1, s)
        last = s == taps_w
        s = tl.where(last, 0, s)
        r = tl.where(last, r + 1, r)
    return k, r, s


@triton.jit
def read(at, mask, MASKED: tl.constexpr):
    """Elements, 0 where the mask is not."""
    if MASKED:
        v = tl.load(at, mask=mask, other=0)
    else:
        v = tl.load(at)
    return v
