"""The Triton kernel of a Hadamard transform, with the additions of `transforms._by_halves`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "terms", "wide", "x_n", "x_i", "x_k", "factor"])
def rotated(
    x,
    signs,
    result,
    rows,
    terms,
    wide,
    x_n,
    x_i,
    x_k,
    factor,
    ADJACENT: tl.constexpr,
    SIGNED: tl.constexpr,
    SIZE: tl.constexpr,
    TIMES: tl.constexpr,
    ROWS: tl.constexpr,
    DEEP: tl.constexpr,
):
    """result (batches, rows, wide), fp32, of x (batches, rows, terms): every SIZE terms, times
    `signs` (SIZE) if SIGNED, by Sylvester's matrix of 2^TIMES = SIZE, times factor.

    x_n..: strides of x; ADJACENT: x_k is 1, else x_i may be.  wide: terms, whole sizes.
    Program: ROWS rows of a batch, DEEP terms, whole sizes too.
    """
    if ADJACENT:
        x_k = 1
    across = tl.cdiv(wide, DEEP)
    part, rest = tl.program_id(0) % across, tl.program_id(0) // across
    tall = tl.cdiv(rows, ROWS)
    batch = rest // tall
    row = (rest % tall * ROWS + tl.arange(0, ROWS))[:, None]
    k = (part * DEEP + tl.arange(0, DEEP))[None, :]
    v = tl.load(
        x + batch * x_n + row * x_i + k * x_k, mask=(row < rows) & (k < terms), other=0.0
    ).to(tl.float32)
    if SIGNED:
        v = v * tl.load(signs + k % SIZE)
    for i in tl.static_range(TIMES):
        pairs = tl.reshape(v, (ROWS, DEEP // 2 ** (i + 1), 2, 2**i))
        one, other = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
        pairs = tl.permute(tl.join(one + other, one - other), (0, 1, 3, 2))
        v = tl.reshape(pairs, (ROWS, DEEP))
    tl.store(result + (batch * rows + row) * wide + k, v * factor, mask=(row < rows) & (k < wide))
