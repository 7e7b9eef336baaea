"""The Triton kernels of sums that are rounded after every addition: see `sums`.

result[n, i, j] of matrices a (n, i, k) and b (n, j, k), as they lie.  A program sums a tile of
outputs, all at once, term after term, in registers: in fp32, or WIDE in fp64, where products of two
fp32 numbers are exact.
"""

from __future__ import annotations

import triton
import triton.language as tl

from quantizers.kernels.gpu.triton_keys import folded
from quantizers.kernels.gpu.triton_numbers import noise

from .triton_numbers import odd_sum, rounded
from .triton_terms import placed, terms_of, zeros


@triton.jit(do_not_specialize=["count"])
def keys(key, result, count, BLOCK: tl.constexpr):
    """noise.fold of a key and each number below the count."""
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    found = folded(tl.load(key), number.to(tl.int64))
    tl.store(result + number, found, mask=number < count)


@triton.jit
def _draw(key, index, share, RANDOM: tl.constexpr):
    """u + 1/2 of each output, of an addition's key."""
    draw = share
    if RANDOM > 0:
        draw = (noise(index, tl.load(key)) >> (32 - RANDOM)).to(tl.int32).to(share.dtype) + 0.5
    return draw


@triton.jit
def _plus(x, y, draw, share, format, ODD: tl.constexpr, MODE: tl.constexpr):
    return rounded(odd_sum(x, y) if ODD else x + y, draw, share, format, MODE)


@triton.jit
def _added(
    total, lost, term, draw, share, format, ODD: tl.constexpr, COMPENSATED: tl.constexpr,
    MODE: tl.constexpr,
):  # fmt: skip
    """A term added to a sum and what that lost."""
    if COMPENSATED:
        # times -1: 0 - x would take a zero's sign
        term = _plus(term, lost * -1.0, draw, share, format, ODD, MODE)
        grown = _plus(total, term, draw, share, format, ODD, MODE)
        gained = _plus(grown, total * -1.0, draw, share, format, ODD, MODE)
        total, lost = grown, _plus(gained, term * -1.0, draw, share, format, ODD, MODE)
    else:
        total = _plus(total, term, draw, share, format, ODD, MODE)
    return total, lost


@triton.jit(
    do_not_specialize=[
        "rows", "columns", "shared_a", "shared_b", "a_n", "a_i", "a_k", "b_n", "b_j", "b_k",
        "terms", "each",
    ]
)  # fmt: skip
def sequential(
    a,
    b,
    y,
    keys,
    rows,
    columns,
    shared_a,
    shared_b,
    a_n,
    a_i,
    a_k,
    b_n,
    b_j,
    b_k,
    terms,
    each,
    format,
    narrow,
    WIDE: tl.constexpr,
    FAR: tl.constexpr,
    ODD: tl.constexpr,
    PRODUCT: tl.constexpr,
    CHUNKED: tl.constexpr,
    EXACT: tl.constexpr,
    COMPENSATED: tl.constexpr,
    RANDOM: tl.constexpr,
    MODE: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    BAND: tl.constexpr,
):
    """`accumulators.Sequential`'s.  y (batches, rows, columns), fp32, in C order; shared_a,
    shared_b: batches of it that share one of a, of b.

    format, narrow   of the sum, and of PRODUCTs: see triton_numbers.rounded
    each             terms of a chunk, where there are; EXACT: its sum is rounded once
    keys             of random bits, by the number of an addition, as `accumulate` numbers them
    ODD              sums are rounded to odd before they are rounded; FAR: places pass int32
    """
    batch, m, p, a, b, a_k, b_k = placed(
        a, b, rows, columns, shared_a, shared_b, a_n, a_i, a_k, b_n, b_j, b_k, FAR, ROWS, ACROSS,
        BAND,
    )  # fmt: skip
    there, inside = m < rows, p < columns
    index = (batch.to(tl.int32) * rows + m.to(tl.int32))[:, None] * columns + p[None, :]
    share = tl.full((), 1 << RANDOM, tl.float64 if WIDE else tl.float32)
    total = zeros(ROWS, ACROSS, WIDE)
    lost, part, part_lost = total, total, total
    for k in range(terms):
        left, right = terms_of(a, b, there, inside, k, a_k, b_k, WIDE)
        term = left * right
        if PRODUCT:
            draw = _draw(keys + 2 * k + 1, index, share, RANDOM)
            term = rounded(term, draw, share, narrow, MODE)
        if EXACT:
            part += term
        else:
            draw = _draw(keys + 2 * k, index, share, RANDOM)
            if CHUNKED:
                part, part_lost = _added(
                    part, part_lost, term, draw, share, format, ODD, COMPENSATED, MODE
                )
            else:
                total, lost = _added(total, lost, term, draw, share, format, ODD, COMPENSATED, MODE)
        if CHUNKED:
            if ((k + 1) % each == 0) | (k + 1 == terms):
                chunk = k // each
                if EXACT:
                    draw = _draw(keys + 2 * chunk * each, index, share, RANDOM)
                    part = rounded(part, draw, share, format, MODE)
                draw = _draw(keys + 2 * (terms + chunk), index, share, RANDOM)
                total, lost = _added(total, lost, part, draw, share, format, ODD, COMPENSATED, MODE)
                part = zeros(ROWS, ACROSS, WIDE)
                part_lost = part
    y += (batch * rows + m)[:, None] * columns + p[None, :]
    tl.store(y, total.to(tl.float32), mask=there[:, None] & inside[None, :])
