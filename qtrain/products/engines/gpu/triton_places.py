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
    a scatter before its strides divide them.  Those beyond the last meet nothing, or are the last.
    """
    if MOVES == "still":
        m = tl.minimum(m, rows - 1)
    ow = m % out_width
    oh = (m // out_width) % out_height
    n = m // (out_width * out_height)
    if MOVES == "still" or MOVES == "gather":
        top, left = oh * stride_h - padding_h, ow * stride_w - padding_w
    else:
        top, left = oh + padding_h, ow + padding_w
    return n, oh, ow, tl.where(m < rows, top, -(2**30)).to(tl.int32), left.to(tl.int32)


@triton.jit
def first_place(base, top, left, x_h, x_w, MOVES: tl.constexpr):
    """Where the input at the first tap lies, of images at `base`; where strides are to divide, base
    itself."""
    if MOVES == "still" or MOVES == "gather" or MOVES == "scatter":
        base += top * x_h + left * x_w
    return base


@triton.jit
def place_met(
    first, top, left, down, right, height, width, stride_h, stride_w, x_h, x_w, MOVES: tl.constexpr
):
    """Where the input lies that is met by the tap so far from the first, and whether it is there.

    first, top, left: of `first_place` and `first_met`.
    """
    there = top >= 0
    if MOVES == "still":
        at = first
    else:
        if MOVES != "gather":
            down, right = -down, -right
        h, v = top + down, left + right
        if MOVES == "gather" or MOVES == "scatter":
            at = first + (down * x_h + right * x_w)
        elif MOVES == "scatter 2":
            whole = ((h | v) & 1) == 0
            h, v = h >> 1, v >> 1
        else:
            whole = (h % stride_h == 0) & (v % stride_w == 0)
            h, v = h // stride_h, v // stride_w  # what is negative and divided stays so
        there = (h.to(tl.uint32) < height.to(tl.uint32)) & (v.to(tl.uint32) < width.to(tl.uint32))
        if MOVES == "scatter 2" or MOVES == "scatter any":
            there = there & whole
            at = first + h * x_h + v * x_w
    return at, there


@triton.jit
def moved(k, r, s, deep, summed, taps_w, MOVES: tl.constexpr):
    """The next step's first channel, and its tap: after `deep` channels, or at the next tap."""
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
def read(place, there, inside, MOVES: tl.constexpr, EVEN: tl.constexpr):
    """Elements; 0 beyond the last channel, and in a kernel that moves where there is none."""
    if MOVES == "still":
        if EVEN:
            v = tl.load(place)
        else:
            v = tl.load(place, mask=inside, other=0)
    else:
        if EVEN:
            v = tl.load(place, mask=there, other=0)
        else:
            v = tl.load(place, mask=there & inside, other=0)
    return v
