"""The Triton kernel of sums in blocks: see `sums`, `triton_digits` and `triton_parts`."""

from __future__ import annotations

import triton
import triton.language as tl

from ...engines.gpu.triton_places import tile
from .triton_digits import PAD
from .triton_parts import part, taken, zeros


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
        zeros(ROWS, ACROSS, False), zeros(ROWS, ACROSS, False), zeros(ROWS, ACROSS, False),
        zeros(ROWS, ACROSS, False),
    )  # fmt: skip
    whole = zeros(ROWS, ACROSS, True)
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
                zero = zeros(ROWS, ACROSS, False)
                found_s, found_r, found_odd, found_whole = part(
                    zero, zero, zero, zeros(ROWS, ACROSS, True), left, right, there[:, None],
                    inside[None, :], length, FAR, TWO_A, TWO_B, SUM, ROWS, ACROSS,
                )  # fmt: skip
                total += taken(
                    found_s, found_r, found_odd, found_whole, one, other, unit, FAR, TWO_A, TWO_B,
                    SUM,
                )  # fmt: skip
            else:
                s, r, odd, whole = part(
                    s, r, odd, whole, left, right, there[:, None], inside[None, :], length, FAR,
                    TWO_A, TWO_B, SUM, ROWS, ACROSS,
                )  # fmt: skip
                if step % PARTS == PARTS - 1:
                    total += taken(s, r, odd, whole, one, other, unit, FAR, TWO_A, TWO_B, SUM)
                    s, r, odd = (
                        zeros(ROWS, ACROSS, False), zeros(ROWS, ACROSS, False),
                        zeros(ROWS, ACROSS, False),
                    )  # fmt: skip
                    whole = zeros(ROWS, ACROSS, True)
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
    SUM, PARTS: see triton_parts.part; of DEEP terms in a block.  turns: of TURN parts at a time.
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
        for slice in range(ACROSS // 16):  # in narrow tiles: numbers of 64 bits take many registers
            q = p_0 + slice * 16 + tl.arange(0, 16)
            narrow, _ = _summed(
                a, b, scale_a, scale_b, table, m, q, rows, columns, own, blocks, turns, served,
                chosen, wide_a, wide_b, unit, True, WIDE, WINDOWS, TWO_A, TWO_B, SUM, PARTS, ROWS,
                16, DEEP, TURN,
            )  # fmt: skip
            tl.store(y + q[None, :], narrow, mask=inside & (q < columns)[None, :])
    else:
        tl.store(y + p[None, :], total, mask=inside & (p < columns)[None, :])
