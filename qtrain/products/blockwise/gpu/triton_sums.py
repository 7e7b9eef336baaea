"""Triton kernels of sums in blocks: see `sums`, and `triton_digits` for the operands.

64 products of two first digits add up to 2^24 at most, those of a first and a second one in both
orders to 2^24 / 512, those of two second ones to 2^22 / 2^18: multiples of 1, 1/512 and 1/2^18 of
which fp32 holds every sum.  Tensor cores of fp16 give them exactly, in whatever order they add.
How fp32 puts them together, rounding once, says `_block`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...engines.gpu.triton_places import tile
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
def _block(
    left, right, there, inside, parts, FAR: tl.constexpr, TWO_A: tl.constexpr, TWO_B: tl.constexpr,
    SUM: tl.constexpr, ROWS: tl.constexpr, ACROSS: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """fl32 of a block's sum.  left, right: where its first digits are, (ROWS, DEEP) and (DEEP,
    ACROSS).

    SUM: "chained" where fp32 holds every sum of one digit's products: tensor cores take all of it.
    Else H, M and L are those of first digits, of first and second ones, and of second ones:
    "single": of one part.  s = fl(H + M), of which e = M - (s - H) is exactly what is missing
    (Dekker: H is a multiple of M's last place), at most half of s's last place, 1/2.  So e + L is
    a multiple of 1/2^18 below 2^6, exact, and fl(s + (e + L)) is rounded once.
    "pair": of several, s and what it lacks, as long as fp32 holds that.  "long": int64.
    Unless FAR what is infinite may become NaN.
    """
    s = tl.zeros((ROWS, ACROSS), dtype=tl.float32)
    r = tl.zeros((ROWS, ACROSS), dtype=tl.float32)
    odd = tl.zeros((ROWS, ACROSS), dtype=tl.float32)
    whole = tl.zeros((ROWS, ACROSS), dtype=tl.int64)
    length = (1 if SUM == "single" else parts) * DEEP
    for part in range(1 if SUM == "single" else parts):
        at = part * DEEP
        a1 = tl.load(left + at, mask=there, other=0.0)
        b1 = tl.load(right + at, mask=inside, other=0.0)
        if SUM == "chained":
            s = tl.dot(a1, b1, s)
        else:
            a2, b2 = a1, b1
            high = tl.dot(a1, b1)
            middle = tl.zeros((ROWS, ACROSS), dtype=tl.float32)
            if TWO_A:
                a2 = tl.load(left + at + length, mask=there, other=0.0)
                middle = tl.dot(a2, b1)
            if TWO_B:
                b2 = tl.load(right + at + length, mask=inside, other=0.0)
                middle = tl.dot(a1, b2, middle)
            if FAR and (TWO_A or TWO_B):
                found = tl.dot(_first(a1, a2), _first(b1, b2))
                odd += tl.where(tl.abs(found) < float("inf"), 0.0, found)
            if SUM == "single":
                s = high + middle
                if TWO_A and TWO_B:
                    s += tl.dot(a2, b2, middle - (s - high))
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
    if SUM == "pair":
        s += r
    if SUM == "long":
        s = whole.to(tl.float32)
        if TWO_A or TWO_B:
            s *= 0.001953125
        if TWO_A and TWO_B:
            s *= 0.001953125
    if FAR and (TWO_A or TWO_B):
        s = tl.where(odd == 0.0, s, odd)
    return s


@triton.jit
def _summed(
    a, b, scale_a, scale_b, table, m, p, rows, columns, own, blocks, turns, parts, served, chosen,
    places, unit, FAR: tl.constexpr, WIDE: tl.constexpr, WINDOWS: tl.constexpr,
    TWO_A: tl.constexpr, TWO_B: tl.constexpr, SUM: tl.constexpr, ROWS: tl.constexpr,
    ACROSS: tl.constexpr, DEEP: tl.constexpr, TURN: tl.constexpr,
):  # fmt: skip
    """All blocks of a tile, and whether it has to be taken again, FAR: where a sum is not finite,
    or the product of two scales may be no normal number of fp32, unit included."""
    total = tl.zeros((ROWS, ACROSS), dtype=tl.float32)
    low_a, low_b = tl.full((ROWS,), 1.0, tl.float32), tl.full((ACROSS,), 1.0, tl.float32)
    k = tl.arange(0, DEEP)
    length = (1 if SUM == "single" else parts) * DEEP
    each_a, each_b = length * (2 if TWO_A else 1), length * (2 if TWO_B else 1)
    behind = b + (p * blocks * each_b)[None, :] + k[:, None]
    for turn in range(turns):
        for i in tl.static_range(TURN):
            block = turn * TURN + i
            row, there, inside, within = m, m < rows, p < columns, block
            if TURN > 1:
                there, inside = there & (block < blocks), inside & (block < blocks)
            if WINDOWS:
                found = tl.load(table + block // own * served + m % served, mask=there, other=-1)
                there = found >= 0
                row = found + m // served * chosen
                within = block % own
            one = tl.load(scale_a + within * places + row, mask=there, other=1.0)
            other = tl.load(scale_b + block * columns + p, mask=inside, other=1.0)
            left = a + ((row * own + within) * each_a)[:, None] + k[None, :]
            s = _block(
                left, behind + block * each_b, there[:, None], inside[None, :], parts, FAR, TWO_A,
                TWO_B, SUM, ROWS, ACROSS, DEEP,
            )  # fmt: skip
            if FAR:
                both = fl24(one[:, None], other[None, :])
                total += ((s * unit).to(tl.float64) * both).to(tl.float32)
            else:
                total += s * ((one * unit)[:, None] * other[None, :])
                low_a, low_b = tl.minimum(low_a, one), tl.minimum(low_b, other)
    least = tl.min(low_a, 0) * tl.min(low_b, 0)
    odd = tl.max(tl.max((tl.abs(total) < float("inf")).to(tl.int32) ^ 1, 1), 0)
    return total, (odd == 1) | (least < 2.0**-125) | (least * unit < 2.0**-125)


@triton.jit(
    do_not_specialize=[
        "rows", "columns", "own", "blocks", "turns", "parts", "served", "chosen", "places",
        "shared_a", "shared_b",
    ]
)  # fmt: skip
def block_sums(
    a,
    b,
    y,
    scale_a,
    scale_b,
    table,
    rows,
    columns,
    own,
    blocks,
    turns,
    parts,
    served,
    chosen,
    places,
    shared_a,
    shared_b,
    unit,
    WIDE: tl.constexpr,
    WINDOWS: tl.constexpr,
    TWO_A: tl.constexpr,
    TWO_B: tl.constexpr,
    SUM: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    DEEP: tl.constexpr,
    TURN: tl.constexpr,
    BAND: tl.constexpr,
):
    """y[n, i, j] = sum over blocks, in order, of fl32(S) * fl24(scale_a[i] * scale_b[j]).

    a, b, and scale_a, scale_b: as `digits` makes them, of one digit or two (TWO), of (batches,
    places), whose blocks are `own`, and of (batches, columns), whose are `blocks`; unit: of a
    product of two elements, as digits count them.
    y (batches, rows, columns), fp32, in C order; shared_a, shared_b: batches of it that share one
    of a, of b.
    WINDOWS: rows are put together of places by the table, see rows.Windows; else they are places.
    parts: of DEEP terms in a block.  SUM: see `_block`.  turns: of TURN blocks at a time.
    WIDE: places in a, b or y pass int32.
    Program: a tile of a batch, ROWS x ACROSS; BAND of them share what they read.
    """
    batch, m, p = tile(rows, columns, WIDE, ROWS, ACROSS, BAND)
    first, second = batch // shared_a, batch // shared_b
    length = (1 if SUM == "single" else parts) * DEEP
    a += first * places * own * length * (2 if TWO_A else 1)
    b += second * columns * blocks * length * (2 if TWO_B else 1)
    scale_a += first * own * places
    scale_b += second * blocks * columns
    if WIDE:
        p = p.to(tl.int64)
    total, again = _summed(
        a, b, scale_a, scale_b, table, m, p, rows, columns, own, blocks, turns, parts, served,
        chosen, places, unit, False, WIDE, WINDOWS, TWO_A, TWO_B, SUM, ROWS, ACROSS, DEEP, TURN,
    )  # fmt: skip
    if again:
        total, again = _summed(
            a, b, scale_a, scale_b, table, m, p, rows, columns, own, blocks, turns, parts, served,
            chosen, places, unit, True, WIDE, WINDOWS, TWO_A, TWO_B, SUM, ROWS, ACROSS, DEEP, TURN,
        )  # fmt: skip
    place = (batch * rows + m)[:, None] * columns + p[None, :]
    tl.store(y + place, total, mask=(m < rows)[:, None] & (p < columns)[None, :])
