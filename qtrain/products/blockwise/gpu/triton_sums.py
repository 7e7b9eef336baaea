"""Triton kernels of sums in blocks: see `sums`.

Elements are integers in units of their format's smallest: one digit of at most 512, or two to the
base 512, which fp16 holds.  32 products of two such digits, and twice as many of a first and a
second one, add up to 2^24 at most, in which fp32 holds every integer: tensor cores of fp16 give
them exactly, in whatever order they add.  A first digit is rounded away from 0, so that none but
that of 0 is 0: first digits alone tell what infinite elements come to.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...engines.gpu.triton_places import tile
from ...engines.gpu.triton_scales import fl24


@triton.jit(
    do_not_specialize=["rows", "blocks", "parts", "step", "own", "terms", "x_n", "x_i", "x_p"]
)
def digits(
    x,
    y,
    rows,
    blocks,
    parts,
    step,
    own,
    terms,
    x_n,
    x_i,
    x_p,
    x_k,
    per_unit,
    WIDE: tl.constexpr,
    TWO: tl.constexpr,
    DEEP: tl.constexpr,
    ROWS: tl.constexpr,
):
    """y (batches, rows, blocks, digits, length), fp16, of x (batches, rows, positions, terms),
    fp32, in blocks of `step` terms, `own` a position; zeros behind a block, up to a multiple of
    DEEP.

    per_unit: elements times it are integers; TWO: digits; WIDE: places in x or y pass int32.
    Program: ROWS rows of a batch, one of `parts` of a block, DEEP terms.
    """
    part, rest = tl.program_id(0) % parts, tl.program_id(0) // parts
    block, rest = rest % blocks, rest // blocks
    tall = tl.cdiv(rows, ROWS)
    batch, m = rest // tall, rest % tall * ROWS + tl.arange(0, ROWS)
    position, within = block // own, block % own
    if WIDE:
        batch, m, block, position = (
            batch.to(tl.int64), m.to(tl.int64), block.to(tl.int64), position.to(tl.int64)
        )  # fmt: skip
    k = part * DEEP + tl.arange(0, DEEP)
    at = within * step + k
    there = (m < rows)[:, None]
    v = tl.load(
        x + (batch * x_n + m * x_i)[:, None] + (position * x_p + at * x_k)[None, :],
        mask=there & ((k < step) & (at < terms))[None, :],
        other=0.0,
    )
    v = v * per_unit
    length = parts * DEEP
    count = 2 if TWO else 1
    to = y + (((batch * rows + m) * blocks + block) * count * length)[:, None] + k[None, :]
    if TWO:
        finite = tl.abs(v) < float("inf")
        quotient = tl.abs(v) * 0.001953125
        first = tl.floor(quotient)
        first = tl.where(first < quotient, first + 1.0, first)
        first = tl.where(v < 0.0, -first, tl.where(finite, first, v))
        second = tl.where(finite, v - first * 512.0, 0.0)
        tl.store(to, first.to(tl.float16), mask=there)
        tl.store(to + length, second.to(tl.float16), mask=there)
    else:
        tl.store(to, v.to(tl.float16), mask=there)


@triton.jit
def _integer(found, LONG: tl.constexpr):
    """An integer in fp32, as int64 if LONG, else int32."""
    return found.to(tl.int32).to(tl.int64 if LONG else tl.int32)


@triton.jit
def _block(
    a, b, there, inside, parts, TWO_A: tl.constexpr, TWO_B: tl.constexpr, SINGLE: tl.constexpr,
    LONG: tl.constexpr, ROWS: tl.constexpr, ACROSS: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """fl32 of a block's sum, in the product of the units; a, b: where rows and columns start."""
    k = tl.arange(0, DEEP)
    whole = tl.zeros((ROWS, ACROSS), dtype=tl.int64 if LONG else tl.int32)
    found = tl.zeros((ROWS, ACROSS), dtype=tl.float32)
    left, right = a[:, None] + k[None, :], b[None, :] + k[:, None]
    length = (1 if SINGLE else parts) * DEEP
    there, inside = there[:, None], inside[None, :]
    for part in range(1 if SINGLE else parts):
        at = part * DEEP
        a1 = tl.load(left + at, mask=there, other=0.0)
        b1 = tl.load(right + at, mask=inside, other=0.0)
        high = tl.dot(a1, b1)
        if SINGLE and not (TWO_A or TWO_B):
            found = high
        else:
            found += tl.where(tl.abs(high) < float("inf"), 0.0, high)
            own = _integer(high, LONG)
            if TWO_A:
                a2 = tl.load(left + at + length, mask=there, other=0.0)
                middle = tl.dot(a2, b1)
                if TWO_B:
                    b2 = tl.load(right + at + length, mask=inside, other=0.0)
                    middle = tl.dot(a1, b2, middle)
                    own = (own * 512 + _integer(middle, LONG)) * 512
                    own += _integer(tl.dot(a2, b2), LONG)
                else:
                    own = own * 512 + _integer(middle, LONG)
            elif TWO_B:
                b2 = tl.load(right + at + length, mask=inside, other=0.0)
                own = own * 512 + _integer(tl.dot(a1, b2), LONG)
            whole += own
    if TWO_A or TWO_B or not SINGLE:
        found += whole.to(tl.float32)
    return found


@triton.jit
def _summed(
    a, b, scale_a, scale_b, table, m, rows, inside, own, blocks, parts, positions, served, chosen,
    scale_a_i, scale_a_k, scale_b_k, unit, FAR: tl.constexpr, WIDE: tl.constexpr,
    WINDOWS: tl.constexpr, TWO_A: tl.constexpr, TWO_B: tl.constexpr, SINGLE: tl.constexpr,
    LONG: tl.constexpr, ROWS: tl.constexpr, ACROSS: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """All blocks of a tile, and whether every product of two scales is a normal number of fp32, as
    it must be unless FAR."""
    total = tl.zeros((ROWS, ACROSS), dtype=tl.float32)
    low_a, high_a = tl.full((ROWS,), 1.0, tl.float32), tl.full((ROWS,), 1.0, tl.float32)
    low_b, high_b = tl.full((ACROSS,), 1.0, tl.float32), tl.full((ACROSS,), 1.0, tl.float32)
    length = (1 if SINGLE else parts) * DEEP
    each_a, each_b = length * (2 if TWO_A else 1), length * (2 if TWO_B else 1)
    for block in range(blocks):
        row, there, within = m, m < rows, block
        if WINDOWS:
            position = block // own
            within = block % own
            found = tl.load(table + (m % served) * positions + position, mask=there, other=-1)
            there = found >= 0
            if not WIDE:
                found = found.to(tl.int32)
            row = found + m // served * chosen
        sums = _block(
            a + (row * own + within) * each_a, b + block * each_b, there, inside, parts, TWO_A,
            TWO_B, SINGLE, LONG, ROWS, ACROSS, DEEP,
        )  # fmt: skip
        one = tl.load(scale_a + row * scale_a_i + within * scale_a_k, mask=there, other=0.0)
        other = tl.load(scale_b + block * scale_b_k, mask=inside, other=0.0)
        if FAR:
            both = fl24(one[:, None], other[None, :])
            total += ((sums * unit).to(tl.float64) * both).to(tl.float32)
        else:
            total += (sums * unit) * (one[:, None] * other[None, :])
            low_a = tl.minimum(low_a, tl.where(one == 0.0, 1.0, one))
            low_b = tl.minimum(low_b, tl.where(other == 0.0, 1.0, other))
            high_a, high_b = tl.maximum(high_a, one), tl.maximum(high_b, other)
    least, most = tl.min(low_a, 0) * tl.min(low_b, 0), tl.max(high_a, 0) * tl.max(high_b, 0)
    return total, (least >= 2.0**-125) & (most < 2.0**127)


@triton.jit(
    do_not_specialize=[
        "rows", "columns", "own", "blocks", "parts", "positions", "served", "chosen", "places",
        "shared_a", "shared_b", "scale_a_n", "scale_a_i", "scale_a_k", "scale_b_n", "scale_b_j",
        "scale_b_k",
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
    parts,
    positions,
    served,
    chosen,
    places,
    shared_a,
    shared_b,
    scale_a_n,
    scale_a_i,
    scale_a_k,
    scale_b_n,
    scale_b_j,
    scale_b_k,
    unit,
    WIDE: tl.constexpr,
    WINDOWS: tl.constexpr,
    TWO_A: tl.constexpr,
    TWO_B: tl.constexpr,
    SINGLE: tl.constexpr,
    LONG: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    DEEP: tl.constexpr,
    BAND: tl.constexpr,
):
    """y[n, i, j] = sum over blocks, in order, of fl32(S) * fl24(scale_a[i] * scale_b[j]).

    a, b: as `digits` makes them, of one digit or two (TWO), of (batches, places), whose blocks are
    `own`, and of (batches, columns), whose are `blocks`; unit: of a product of two elements.
    scale_a, scale_b (fp32): of these blocks, of strides _n, _i or _j, _k.
    y (batches, rows, columns), fp32, in C order; shared_a, shared_b: batches of it that share one
    of a, of b.
    WINDOWS: rows are put together of places by the table, see sums.Windows; else they are places.
    parts: of DEEP terms in a block, SINGLE: one.  LONG: a block's sum passes int32.
    WIDE: places in a, b or y pass int32.
    Program: a tile of a batch, ROWS x ACROSS; BAND of them share what they read.
    """
    batch, m, p = tile(rows, columns, WIDE, ROWS, ACROSS, BAND)
    inside = p < columns
    first, second = batch // shared_a, batch // shared_b
    length = (1 if SINGLE else parts) * DEEP
    a += first * places * own * length * (2 if TWO_A else 1)
    scale_a += first * scale_a_n
    b += (second * columns + p) * blocks * length * (2 if TWO_B else 1)
    scale_b += second * scale_b_n + p * scale_b_j
    total, near = _summed(
        a, b, scale_a, scale_b, table, m, rows, inside, own, blocks, parts, positions, served,
        chosen, scale_a_i, scale_a_k, scale_b_k, unit, False, WIDE, WINDOWS, TWO_A, TWO_B, SINGLE,
        LONG, ROWS, ACROSS, DEEP,
    )  # fmt: skip
    if not near:
        total, near = _summed(
            a, b, scale_a, scale_b, table, m, rows, inside, own, blocks, parts, positions, served,
            chosen, scale_a_i, scale_a_k, scale_b_k, unit, True, WIDE, WINDOWS, TWO_A, TWO_B,
            SINGLE, LONG, ROWS, ACROSS, DEEP,
        )  # fmt: skip
    place = (batch * rows + m)[:, None] * columns + p[None, :]
    tl.store(y + place, total, mask=(m < rows)[:, None] & inside[None, :])
