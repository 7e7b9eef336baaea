"""What the kernels of accumulators read, and where: a tile of outputs, and their terms."""

from __future__ import annotations

import triton
import triton.language as tl

from ...engines.gpu.triton_places import tile


@triton.jit
def placed(
    a, b, rows, columns, shared_a, shared_b, a_n, a_i, a_k, b_n, b_j, b_k, FAR: tl.constexpr,
    ROWS: tl.constexpr, ACROSS: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    """A program's batch, rows and columns, where their first terms are, and how far apart."""
    batch, m, p = tile(rows, columns, FAR, ROWS, ACROSS, BAND)
    a += batch // shared_a * a_n + m * a_i
    b += batch // shared_b * b_n + p.to(m.dtype) * b_j
    if FAR:
        a_k, b_k = a_k.to(tl.int64), b_k.to(tl.int64)
    return batch, m, p, a, b, a_k, b_k


@triton.jit
def zeros(ROWS: tl.constexpr, ACROSS: tl.constexpr, WIDE: tl.constexpr):
    return tl.zeros((ROWS, ACROSS), dtype=tl.float64 if WIDE else tl.float32)


@triton.jit
def terms_of(a, b, there, inside, k, a_k, b_k, WIDE: tl.constexpr):
    """The k-th terms of rows and columns."""
    left = tl.load(a + k * a_k, mask=there, other=0.0)[:, None]
    right = tl.load(b + k * b_k, mask=inside, other=0.0)[None, :]
    if WIDE:
        left, right = left.to(tl.float64), right.to(tl.float64)
    return left, right
