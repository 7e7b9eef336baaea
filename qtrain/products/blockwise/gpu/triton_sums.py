"""Triton kernels of sums in blocks: see `sums`, and `triton_digits` for the operands.

64 products of two first digits add up to 2^24 at most, those of a first and a second one in both
orders to 2^24 / 512, those of two second ones to 2^22 / 2^18: multiples of 1, 1/512 and 1/2^18 of
which fp32 holds every sum.  Tensor cores of fp16 give them exactly, in whatever order they add.
How fp32 puts them together, rounding once, says `_part`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...engines.gpu.triton_places import tile
from ...engines.gpu.triton_scales import fl24
from .triton_digits import PAD


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
def _zeros(ROWS: tl.constexpr, ACROSS: tl.constexpr, LONG: tl.constexpr):
    return tl.zeros((ROWS, ACROSS), dtype=tl.int64 if LONG else tl.float32)


@triton.jit
def _part(
    s, r, odd, whole, left, right, there, inside, length, FAR: tl.constexpr, TWO_A: tl.constexpr,
    TWO_B: tl.constexpr, SUM: tl.constexpr, ROWS: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    """A block's sum so far, and a part of it: see `_taken`.  left, right: where first digits are,
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
        middle = _zeros(ROWS, ACROSS, False)
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
    return s, r, odd, whole


@triton.jit
def _taken(
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


@triton.jit
def _summed(
    a, b, scale_a, scale_b, table, m, p, rows, columns, own, blocks, turns, served, chosen, wide_a,
    wide_b, unit, FAR: tl.constexpr, WIDE: tl.constexpr, WINDOWS: tl.constexpr,
    TWO_A: tl.constexpr, TWO_B: tl.constexpr, SUM: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, ACROSS: tl.constexpr, DEEP: tl.constexpr, TURN: tl.constexpr,
):  # fmt: skip
    """All blocks of a tile, and whether it has to be taken again, FAR: where a sum is not finite,
    or the product of two scales may be no normal number of fp32, unit included."""
    total, s, r, odd = (
        _zeros(ROWS, ACROSS, False), _zeros(ROWS, ACROSS, False), _zeros(ROWS, ACROSS, False),
        _zeros(ROWS, ACROSS, False),
    )  # fmt: skip
    whole = _zeros(ROWS, ACROSS, True)
    low_a, low_b = tl.full((ROWS,), 1.0, tl.float32), tl.full((ACROSS,), 1.0, tl.float32)
    k = tl.arange(0, DEEP)
    length = PARTS * DEEP
    each_a, each_b = length * (2 if TWO_A else 1), length * (2 if TWO_B else 1)
    behind = b + (p * blocks * each_b)[None, :] + k[:, None]
    for turn in range(turns):
        for i in tl.static_range(TURN):
            step = turn * TURN + i
            block = step // PARTS
            row, there, inside, within = m, m < rows, p < columns, block
            if TURN > 1:
                there, inside = there & (block < blocks), inside & (block < blocks)
            if WINDOWS:
                found = tl.load(table + block // own * served + m % served, mask=there, other=-1)
                there = found >= 0
                row = found + m // served * chosen
                within = block % own
            of_a, of_b = (
                scale_a + within * (wide_a * PAD) + row,
                scale_b + block * (wide_b * PAD) + p,
            )
            if WINDOWS or TURN > 1:
                one = tl.load(of_a, mask=there, other=1.0)
            else:
                one = tl.load(of_a)
            if TURN > 1:
                other = tl.load(of_b, mask=block < blocks, other=1.0)
            else:
                other = tl.load(of_b)
            if not FAR:
                low_a, low_b = tl.minimum(low_a, one), tl.minimum(low_b, other)
            at = step % PARTS * DEEP
            left = a + ((row * own + within) * each_a + at)[:, None] + k[None, :]
            right = behind + (block * each_b + at)
            if PARTS == 1:
                zero = _zeros(ROWS, ACROSS, False)
                found_s, found_r, found_odd, found_whole = _part(
                    zero, zero, zero, _zeros(ROWS, ACROSS, True), left, right, there[:, None],
                    inside[None, :], length, FAR, TWO_A, TWO_B, SUM, ROWS, ACROSS,
                )  # fmt: skip
                total += _taken(
                    found_s, found_r, found_odd, found_whole, one, other, unit, FAR, TWO_A, TWO_B,
                    SUM,
                )  # fmt: skip
            else:
                s, r, odd, whole = _part(
                    s, r, odd, whole, left, right, there[:, None], inside[None, :], length, FAR,
                    TWO_A, TWO_B, SUM, ROWS, ACROSS,
                )  # fmt: skip
                if step % PARTS == PARTS - 1:
                    total += _taken(s, r, odd, whole, one, other, unit, FAR, TWO_A, TWO_B, SUM)
                    s, r, odd = (
                        _zeros(ROWS, ACROSS, False), _zeros(ROWS, ACROSS, False),
                        _zeros(ROWS, ACROSS, False),
                    )  # fmt: skip
                    whole = _zeros(ROWS, ACROSS, True)
    least = tl.min(low_a, 0) * tl.min(low_b, 0)
    bad = tl.max(tl.max((tl.abs(total) < float("inf")).to(tl.int32) ^ 1, 1), 0)
    return total, (bad == 1) | (least < 2.0**-125) | (least * unit < 2.0**-125)


@triton.jit(
    do_not_specialize=[
        "rows", "columns", "own", "blocks", "turns", "served", "chosen", "places",
        "shared_a", "shared_b", "wide_a", "wide_b",
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
    served,
    chosen,
    places,
    shared_a,
    shared_b,
    wide_a,
    wide_b,
    unit,
    WIDE: tl.constexpr,
    WINDOWS: tl.constexpr,
    TWO_A: tl.constexpr,
    TWO_B: tl.constexpr,
    SUM: tl.constexpr,
    PARTS: tl.constexpr,
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
    wide_a, wide_b: PAD scales, of one block, that these lie apart.
    y (batches, rows, columns), fp32, in C order; shared_a, shared_b: batches of it that share one
    of a, of b.
    WINDOWS: rows are put together of places by the table, see rows.Windows; else they are places.
    SUM, PARTS: see `_part`; of DEEP terms in a block.  turns: of TURN parts at a time.
    WIDE: places in a, b or y pass int32.
    Program: a tile of a batch, ROWS x ACROSS; BAND of them share what they read.
    """
    batch, m, p = tile(rows, columns, WIDE, ROWS, ACROSS, BAND)
    first, second = batch // shared_a, batch // shared_b
    length = PARTS * DEEP
    a += first * places * own * length * (2 if TWO_A else 1)
    b += second * columns * blocks * length * (2 if TWO_B else 1)
    scale_a += first * own * (wide_a * PAD)
    scale_b += second * blocks * (wide_b * PAD)
    if WIDE:
        p = p.to(tl.int64)
    p_0 = tl.min(p, 0)
    total, again = _summed(
        a, b, scale_a, scale_b, table, m, p, rows, columns, own, blocks, turns, served, chosen,
        wide_a, wide_b, unit, False, WIDE, WINDOWS, TWO_A, TWO_B, SUM, PARTS, ROWS, ACROSS, DEEP,
        TURN,
    )  # fmt: skip
    inside = (m < rows)[:, None]
    y += (batch * rows + m)[:, None] * columns
    if again:
        for part in range(ACROSS // 16):  # in narrow tiles: numbers of 64 bits take many registers
            q = p_0 + part * 16 + tl.arange(0, 16)
            narrow, _ = _summed(
                a, b, scale_a, scale_b, table, m, q, rows, columns, own, blocks, turns, served,
                chosen, wide_a, wide_b, unit, True, WIDE, WINDOWS, TWO_A, TWO_B, SUM, PARTS, ROWS,
                16, DEEP, TURN,
            )  # fmt: skip
            tl.store(y + q[None, :], narrow, mask=inside & (q < columns)[None, :])
    else:
        tl.store(y + p[None, :], total, mask=inside & (p < columns)[None, :])
