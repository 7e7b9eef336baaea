"""The Triton kernels of attention's softmax: the mask is added, and the gradient made, in one pass.

exp is CUDA's own, which errs by 2 units in the last place at most; tl.exp is 2^x of a rounded
product, whose error grows with its argument.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice

from quantizers.kernels.gpu.device import INTERPRETED
from quantizers.kernels.gpu.triton_numbers import multiple, near_bf16

#: whose tl.exp is numpy's
_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def exp(x):
    if _INTERPRETED:
        y = tl.exp(x)
    else:
        y = libdevice.exp(x)
    return y


@triton.jit
def _at(row, high, wide, n, h, q, ALIGNED: tl.constexpr):
    """Where rows of (any, high, wide) lie, so many elements apart along each axis: int64."""
    above, right = row // wide, (row % wide).to(tl.int64)
    outer, inner = (above // high).to(tl.int64), (above % high).to(tl.int64)
    n, h, q = multiple(n, ALIGNED), multiple(h, ALIGNED), multiple(q, ALIGNED)
    return outer * n + inner * h + right * q


@triton.jit
def _stored(y, place):
    """y (fp32) rounded to the dtype of what lies at a place."""
    if place.dtype.element_ty == tl.bfloat16:
        y = near_bf16(y)
    return y.to(place.dtype.element_ty)


@triton.jit(do_not_specialize=[
    "rows", "keys", "high", "wide", "x_n", "x_h", "x_q", "m_n", "m_h", "m_q", "m_k", "i_n", "i_h",
    "i_q",
])  # fmt: skip
def softmax(
    x, mask, idle, result, rows, keys, high, wide, x_n, x_h, x_q, m_n, m_h, m_q, m_k, i_n, i_h,
    i_q, MASKED: tl.constexpr, ADJACENT: tl.constexpr, NARROW: tl.constexpr, IDLE: tl.constexpr,
    ALIGNED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """result (rows, keys), contiguous: softmax over keys of x, + mask if MASKED, 0 where a row is
    idle if IDLE.

    high, wide: rows are (any, high, wide); x_n.., m_n.., i_n..: steps along these axes; m_k: of the
    mask along the keys, 1 if ADJACENT.  NARROW: the sum is rounded to x's dtype.  ALIGNED: keys and
    the steps of x and of an adjacent mask are multiples of it.  Program: ROWS rows, KEYS >= keys.
    """
    keys = multiple(keys, ALIGNED)
    row, k = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, KEYS)[None, :]
    inside = (row < rows)[:, None] & (k < keys)
    at = _at(row, high, wide, x_n, x_h, x_q, ALIGNED)[:, None]
    v = tl.load(x + at + k, mask=inside, other=float("-inf")).to(tl.float32)
    if MASKED:
        if ADJACENT:
            at = _at(row, high, wide, m_n, m_h, m_q, ALIGNED)[:, None] + k
        else:
            at = _at(row, high, wide, m_n, m_h, m_q, 1)[:, None] + k.to(tl.int64) * m_k
        v += tl.load(mask + at, mask=inside, other=0.0).to(tl.float32)
        if NARROW:
            v = _stored(v, x).to(tl.float32)
    v = exp(v - tl.max(v, 1)[:, None])
    v = tl.div_rn(v, tl.sum(v, 1)[:, None])
    if IDLE:
        at = _at(row, high, wide, i_n, i_h, i_q, 1)
        v = tl.where(tl.load(idle + at, mask=row < rows, other=0)[:, None] != 0, 0.0, v)
    at = (row.to(tl.int64) * keys)[:, None]
    tl.store(result + at + k, _stored(v, result), mask=inside)


@triton.jit(do_not_specialize=[
    "rows", "keys", "high", "wide", "w_n", "w_h", "w_q", "g_n", "g_h", "g_q", "g_k",
])  # fmt: skip
def softmax_gradient(
    weights, grad, result, rows, keys, high, wide, w_n, w_h, w_q, g_n, g_h, g_q, g_k,
    ADJACENT: tl.constexpr, ALIGNED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """result (rows, keys), contiguous: what softmax's weights make of their gradient,
    grad * weights - weights * sum(grad * weights), each product and sum rounded to fp32.

    As of `softmax`; w_n.., g_n..: steps of weights and grad; g_k: 1 if ADJACENT.
    """
    keys = multiple(keys, ALIGNED)
    row, k = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, KEYS)[None, :]
    inside = (row < rows)[:, None] & (k < keys)
    at = _at(row, high, wide, w_n, w_h, w_q, ALIGNED)[:, None]
    w = tl.load(weights + at + k, mask=inside, other=0.0).to(tl.float32)
    if ADJACENT:
        at = _at(row, high, wide, g_n, g_h, g_q, ALIGNED)[:, None] + k
    else:
        at = _at(row, high, wide, g_n, g_h, g_q, 1)[:, None] + k.to(tl.int64) * g_k
    g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32) * w
    y = g - w * tl.sum(g, 1)[:, None]
    at = (row.to(tl.int64) * keys)[:, None]
    tl.store(result + at + k, _stored(y, result), mask=inside)
