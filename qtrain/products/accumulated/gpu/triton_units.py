"""The Triton kernels of sums that a unit aligns, or that saturate: as `triton_sequential`'s."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_numbers import power, ratio, rounded, truncated
from .triton_terms import placed, terms_of, zeros

_RUN_TIME = [
    "rows", "columns", "terms", "groups", "each", "promote", "shared_a", "shared_b",
    "a_n", "a_i", "a_k", "b_n", "b_j", "b_k",
]  # fmt: skip


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
    batch, m, p, a, b, a_k, b_k = placed(
        a, b, rows, columns, shared_a, shared_b, a_n, a_i, a_k, b_n, b_j, b_k, FAR, ROWS, ACROSS,
        BAND,
    )  # fmt: skip
    there, inside = m < rows, p < columns
    total = zeros(ROWS, ACROSS, WIDE)
    low = tl.full((), low, total.dtype)
    high = -1.0 - low
    for k in range(terms):
        left, right = terms_of(a, b, there, inside, k, a_k, b_k, WIDE)
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
    batch, m, p, a, b, a_k, b_k = placed(
        a, b, rows, columns, shared_a, shared_b, a_n, a_i, a_k, b_n, b_j, b_k, FAR, ROWS, ACROSS,
        BAND,
    )  # fmt: skip
    there, inside = m < rows, p < columns
    total = zeros(ROWS, ACROSS, WIDE)
    outer = zeros(ROWS, ACROSS, False)
    scale = tl.full((), scale, total.dtype)
    for group in range(groups):
        first = group * each
        top = tl.maximum(power(total), kept[0])
        for i in range(each):
            k = first + i
            left, right = terms_of(a, b, there & (k < terms), inside, k, a_k, b_k, WIDE)
            own = tl.maximum(power(left), least_a) * tl.maximum(power(right), least_b)
            top = tl.where(k < terms, tl.maximum(top, own), top)
        top = tl.minimum(top, 2.0**300 if WIDE else 2.0**100)  # an infinite term's is none
        up = ratio(scale, top)
        whole = truncated(total * up) + 0.0  # no sum is -0
        for i in range(each):
            k = first + i
            left, right = terms_of(a, b, there & (k < terms), inside, k, a_k, b_k, WIDE)
            term = truncated(left * right * up)
            whole = tl.where(k < terms, whole + term, whole)
        total = rounded(whole * ratio(top, scale), scale, scale, kept, "toward_zero")
        if PROMOTED:
            if ((group + 1) * each % promote == 0) | (group == groups - 1):
                outer += total.to(tl.float32)
                total = zeros(ROWS, ACROSS, WIDE)
    if not PROMOTED:
        outer = total.to(tl.float32)
    y += (batch * rows + m)[:, None] * columns + p[None, :]
    tl.store(y, outer, mask=there[:, None] & inside[None, :])
