"""The Triton kernels of sums by accumulators: see `sums`.

result[n, i, j] of matrices a (n, i, k) and b (n, j, k), as they lie.  A program sums a tile of
outputs, all at once, term after term, in registers: in fp32, or WIDE in fp64, where products of two
fp32 numbers are exact.
"""

from __future__ import annotations

import triton
import triton.language as tl

from quantizers.kernels.gpu.triton_keys import folded
from quantizers.kernels.gpu.triton_numbers import noise

from ...engines.gpu.triton_places import tile
from .triton_numbers import odd_sum, power, ratio, rounded, truncated

_RUN_TIME = [
    "rows", "columns", "terms", "groups", "each", "promote", "shared_a", "shared_b",
    "a_n", "a_i", "a_k", "b_n", "b_j", "b_k",
]  # fmt: skip


@triton.jit(do_not_specialize=["count"])
def keys(key, result, count, BLOCK: tl.constexpr):
    """noise.fold of a key and each number below the count."""
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    found = folded(tl.load(key), number.to(tl.int64))
    tl.store(result + number, found, mask=number < count)


@triton.jit
def _zeros(ROWS: tl.constexpr, ACROSS: tl.constexpr, WIDE: tl.constexpr):
    return tl.zeros((ROWS, ACROSS), dtype=tl.float64 if WIDE else tl.float32)


@triton.jit
def _terms(a, b, there, inside, k, a_k, b_k, WIDE: tl.constexpr):
    """The k-th terms of rows and columns."""
    left = tl.load(a + k * a_k, mask=there, other=0.0)[:, None]
    right = tl.load(b + k * b_k, mask=inside, other=0.0)[None, :]
    if WIDE:
        left, right = left.to(tl.float64), right.to(tl.float64)
    return left, right


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


@triton.jit(do_not_specialize=_RUN_TIME)
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
    batch, m, p = tile(rows, columns, FAR, ROWS, ACROSS, BAND)
    a += batch // shared_a * a_n + m * a_i
    b += batch // shared_b * b_n + p.to(m.dtype) * b_j
    if FAR:
        a_k, b_k = a_k.to(tl.int64), b_k.to(tl.int64)
    there, inside = m < rows, p < columns
    index = (batch.to(tl.int32) * rows + m.to(tl.int32))[:, None] * columns + p[None, :]
    share = tl.full((), 1 << RANDOM, tl.float64 if WIDE else tl.float32)
    total = _zeros(ROWS, ACROSS, WIDE)
    lost, part, part_lost = total, total, total
    for k in range(terms):
        left, right = _terms(a, b, there, inside, k, a_k, b_k, WIDE)
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
                part = _zeros(ROWS, ACROSS, WIDE)
                part_lost = part
    y += (batch * rows + m)[:, None] * columns + p[None, :]
    tl.store(y, total.to(tl.float32), mask=there[:, None] & inside[None, :])


@triton.jit(do_not_specialize=_RUN_TIME)
def saturated(
    a,
    b,
    y,
    _,
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
    low,
    WIDE: tl.constexpr,
    FAR: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    BAND: tl.constexpr,
):
    """`accumulators.Integer`'s, at low and -1 - low; y: int64; else as `sequential`."""
    batch, m, p = tile(rows, columns, FAR, ROWS, ACROSS, BAND)
    a += batch // shared_a * a_n + m * a_i
    b += batch // shared_b * b_n + p.to(m.dtype) * b_j
    if FAR:
        a_k, b_k = a_k.to(tl.int64), b_k.to(tl.int64)
    there, inside = m < rows, p < columns
    total = _zeros(ROWS, ACROSS, WIDE)
    low = tl.full((), low, total.dtype)
    high = -1.0 - low
    for k in range(terms):
        left, right = _terms(a, b, there, inside, k, a_k, b_k, WIDE)
        total += left * right
        total = tl.minimum(tl.maximum(total, low), high)
    y += (batch * rows + m)[:, None] * columns + p[None, :]
    tl.store(y, total.to(tl.int64), mask=there[:, None] & inside[None, :])


@triton.jit(do_not_specialize=_RUN_TIME)
def aligned(
    a,
    b,
    y,
    _,
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
    groups,
    each,
    promote,
    least_a,
    least_b,
    scale,
    kept,
    WIDE: tl.constexpr,
    FAR: tl.constexpr,
    PROMOTED: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    BAND: tl.constexpr,
):
    """`accumulators.Aligned`'s; y: fp32; else as `sequential`.

    groups, each       of terms, and terms of one, of which the last may have less
    promote            terms of a sum that is PROMOTED then, if it is
    least_a, least_b   smallest normal numbers of the operands' formats
    scale, kept        2^bits; the format of the sum
    """
    batch, m, p = tile(rows, columns, FAR, ROWS, ACROSS, BAND)
    a += batch // shared_a * a_n + m * a_i
    b += batch // shared_b * b_n + p.to(m.dtype) * b_j
    if FAR:
        a_k, b_k = a_k.to(tl.int64), b_k.to(tl.int64)
    there, inside = m < rows, p < columns
    total = _zeros(ROWS, ACROSS, WIDE)
    outer = _zeros(ROWS, ACROSS, False)
    scale = tl.full((), scale, total.dtype)
    for group in range(groups):
        first = group * each
        top = tl.maximum(power(total), kept[0])
        for i in range(each):
            k = first + i
            left, right = _terms(a, b, there & (k < terms), inside, k, a_k, b_k, WIDE)
            own = tl.maximum(power(left), least_a) * tl.maximum(power(right), least_b)
            top = tl.where(k < terms, tl.maximum(top, own), top)
        top = tl.minimum(top, 2.0**300 if WIDE else 2.0**100)  # an infinite term's is none
        up = ratio(scale, top)
        whole = truncated(total * up) + 0.0  # no sum is -0
        for i in range(each):
            k = first + i
            left, right = _terms(a, b, there & (k < terms), inside, k, a_k, b_k, WIDE)
            term = truncated(left * right * up)
            whole = tl.where(k < terms, whole + term, whole)
        total = rounded(whole * ratio(top, scale), scale, scale, kept, "toward_zero")
        if PROMOTED:
            if ((group + 1) * each % promote == 0) | (group == groups - 1):
                outer += total.to(tl.float32)
                total = _zeros(ROWS, ACROSS, WIDE)
    if not PROMOTED:
        outer = total.to(tl.float32)
    y += (batch * rows + m)[:, None] * columns + p[None, :]
    tl.store(y, outer, mask=there[:, None] & inside[None, :])
