"""The Triton kernel that makes digits of an operand in blocks: see `digits`.

Elements are integers in units of their format's smallest: one digit of at most 512, or two, which
are e = 512 * (first + second), |first| <= 512 an integer, |second| <= 1/2 a multiple of 1/512; fp16
holds each.
"""

from __future__ import annotations

import triton
import triton.language as tl

from quantizers.kernels.gpu.triton_numbers import is_finite, nearest

#: scales of a block lie in whole such runs
PAD = tl.constexpr(128)


@triton.jit(
    do_not_specialize=[
        "rows", "blocks", "parts", "step", "own", "terms", "x_n", "x_i", "x_p", "x_k", "scale_n",
        "scale_i", "scale_k",
    ]
)  # fmt: skip
def digits(
    x,
    scale,
    y,
    z,
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
    scale_n,
    scale_i,
    scale_k,
    per_unit,
    ADJACENT: tl.constexpr,
    WIDE: tl.constexpr,
    TWO: tl.constexpr,
    DEEP: tl.constexpr,
):
    """y (batches, rows, blocks, digits, length), fp16, of x (batches, rows, positions, terms),
    fp32, in blocks of `step` terms, `own` a position; zeros behind a block, up to a multiple of
    DEEP.  z (batches, blocks, rows), fp32: their scales, of `scale` (batches, rows, blocks); 1
    behind them, up to a multiple of PAD.

    A scale of 0 becomes 1, and its elements 0, or NaN where they are not finite: with that every
    product is as it was.
    per_unit: elements times it are integers, or first digits and parts of 1; TWO: digits; ADJACENT:
    1 where x_k is 1, 2 where x_i is; WIDE: places in x or y pass int32.
    Program: PAD rows of a batch, one of `parts` of a block, DEEP terms.
    """
    if ADJACENT == 1:
        x_k = 1
    if ADJACENT == 2:
        x_i = 1
    part, rest = tl.program_id(0) % parts, tl.program_id(0) // parts
    block, rest = rest % blocks, rest // blocks
    tall = tl.cdiv(rows, PAD)
    batch, m = rest // tall, rest % tall * PAD + tl.arange(0, PAD)
    position, within = block // own, block % own
    if WIDE:
        batch, m, block, position = (
            batch.to(tl.int64), m.to(tl.int64), block.to(tl.int64), position.to(tl.int64)
        )  # fmt: skip
    k = part * DEEP + tl.arange(0, DEEP)
    at = within * step + k
    there = m < rows
    by = tl.load(scale + batch * scale_n + m * scale_i + block * scale_k, mask=there, other=1.0)
    none = by == 0.0
    if part == 0:
        tl.store(z + (batch * blocks + block) * (tall * PAD) + m, tl.where(none, 1.0, by))
    v = tl.load(
        x + (batch * x_n + m * x_i)[:, None] + (position * x_p + at * x_k)[None, :],
        mask=there[:, None] & ((k < step) & (at < terms))[None, :],
        other=0.0,
    )
    v = tl.where(none[:, None], tl.where(is_finite(v), 0.0, float("nan")), v * per_unit)
    length = parts * DEEP
    count = 2 if TWO else 1
    to = y + (((batch * rows + m) * blocks + block) * count * length)[:, None] + k[None, :]
    if TWO:
        first = nearest(v)
        second = tl.where(is_finite(v), v - first, 0.0)
        tl.store(to, first.to(tl.float16), mask=there[:, None])
        tl.store(to + length, second.to(tl.float16), mask=there[:, None])
    else:
        tl.store(to, v.to(tl.float16), mask=there[:, None])
