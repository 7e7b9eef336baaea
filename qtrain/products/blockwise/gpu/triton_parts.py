"""A block's sum, part by part, within Triton kernels: see `triton_digits` for the operands.

64 products of two first digits add up to 2^24 at most, those of a first and a second one in both
orders to 2^24 / 512, those of two second ones to 2^22 / 2^18: multiples of 1, 1/512 and 1/2^18 of
which fp32 holds every sum.  Tensor cores of fp16 give them exactly, in whatever order they add.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...engines.gpu.triton_scales import fl24


@triton.jit
def _added(s, r, x):
    """s + r + x, as fp32's sum of s and x, and r plus what it lacks (Knuth's two-sum)."""
    y = s + x
    z = y - s
    return y, r + ((s - (y - z)) + (x - z))


@triton.jit
def _integer(x):
    return x.to(tl.int32).to(tl.int64)


@triton.jit
def _first(one, two):
    """The first digit that is not 0, of whole elements."""
    return tl.where(one == 0.0, two, one)


@triton.jit
def zeros(ROWS: tl.constexpr, ACROSS: tl.constexpr, LONG: tl.constexpr):
    return tl.zeros((ROWS, ACROSS), dtype=tl.int64 if LONG else tl.float32)


@triton.jit
def part(
    s, r, odd, whole, left, right, there, inside, length, FAR: tl.constexpr, TWO_A: tl.constexpr,
    TWO_B: tl.constexpr, SUM: tl.constexpr, ROWS: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    """A block's sum so far, and a part of it: see `taken`.  left, right: where first digits are,
    (ROWS, DEEP) and (DEEP, ACROSS), second ones `length` behind them.

    SUM: "chained" where fp32 holds every sum of one digit's products: tensor cores take all of it.
    Else H, M and L are those of first digits, of first and second ones, and of second ones:
    "single": of one part.  s = fl(H + M), of which e = M - (s - H) is exactly what is missing
    (Dekker: H is a multiple of M's last place), at most half of s's last place, 1.  So e + L is a
    multiple of 1/2^18 below 2^6, exact, and fl(s + (e + L)) is rounded once.
    "pair": of several, s and r, what it lacks, as long as fp32 holds that.  "long": int64.
    Unless FAR what is infinite may become NaN.
    """
    a1 = tl.load(left, mask=there, other=0.0)
    b1 = tl.load(right, mask=inside, other=0.0)
    if SUM == "chained":
        s = tl.dot(a1, b1, s)
    else:
        a2, b2 = a1, b1
        high = tl.dot(a1, b1)
        middle = zeros(ROWS, ACROSS, False)
        if TWO_A:
            a2 = tl.load(left + length, mask=there, other=0.0)
            middle = tl.dot(a2, b1)
        if TWO_B:
            b2 = tl.load(right + length, mask=inside, other=0.0)
            middle = tl.dot(a1, b2, middle)
        if FAR and (TWO_A or TWO_B):
            found = tl.dot(_first(a1, a2), _first(b1, b2))
            odd += tl.where(tl.abs(found) < float("inf"), 0.0, found)
        if SUM == "single":
            if TWO_A and TWO_B:
                s = high + middle
                s += tl.dot(a2, b2, middle - (s - high))
            else:
                # of a sum Triton would make one product the other's accumulator, of fewer bits
                s = high - (0.0 - middle)
        elif SUM == "pair":
            s, r = _added(s, r, high)
            if TWO_A or TWO_B:
                s, r = _added(s, r, middle)
            if TWO_A and TWO_B:
                r = tl.dot(a2, b2, r)
        else:
            own = _integer(high)
            if TWO_A or TWO_B:
                own = own * 512 + _integer(middle * 512.0)
            if TWO_A and TWO_B:
                own = own * 512 + _integer(tl.dot(a2, b2) * 262144.0)
            whole += own
    return s, r, odd, whole


@triton.jit
def taken(
    s, r, odd, whole, one, other, unit, FAR: tl.constexpr, TWO_A: tl.constexpr,
    TWO_B: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """fl32 of a block's sum, times unit and scales.  odd: what it is, unless 0."""
    if SUM == "pair":
        s += r
    if SUM == "long":
        s = whole.to(tl.float32)
        if TWO_A or TWO_B:
            s *= 0.001953125
        if TWO_A and TWO_B:
            s *= 0.001953125
    if FAR:
        s = tl.where(odd == 0.0, s, odd)
        both = fl24(one[:, None], other[None, :])
        s = ((s * unit).to(tl.float64) * both).to(tl.float32)
    else:
        s *= (one * unit)[:, None] * other[None, :]
    return s
