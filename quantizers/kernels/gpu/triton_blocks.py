"""The Triton kernel of a quantizer in blocks of a matrix: from a block to its scale and elements.

The arithmetic is that of `scales.rules`, operation by operation.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_elements import made
from .triton_numbers import as_float, float_bits, floating, is_finite

_NUMBERS = [
    "rows", "terms", "across", "step", "bands", "blocks", "x_n", "x_i", "x_k", "y_n", "y_i", "y_k",
    "headroom", "edge", "emax", "lowest", "top", "c0", "c1", "s0", "s1",
]  # fmt: skip


@triton.jit
def _power(bound, headroom, edge, emax, lowest, top, over):
    """rules._power: 2^(e - emax + (s > edge)), s * 2^e being bound * headroom.

    headroom: the bits of an fp64 number; lowest, top: exponents of the scale's format; over: what
    lies beyond.
    """
    number = bound.to(tl.float64) * headroom.to(tl.float64, bitcast=True)
    bits = number.to(tl.int64, bitcast=True)
    exponent = (bits >> 52) - 1023 + ((bits & 0xFFFFFFFFFFFFF) > edge).to(tl.int64) - emax
    exponent = tl.maximum(exponent, lowest)
    power = ((tl.minimum(exponent, top) + 1023) << 52).to(tl.float64, bitcast=True)
    found = tl.where(exponent > top, over, power.to(tl.float32))
    found = tl.where(is_finite(bound), found, float("nan"))
    return tl.where(bound == 0.0, 0.0, found)


@triton.jit
def _quotient(bound, reach, s0, s1, s2, s3, s4, NARROW: tl.constexpr, S_SIGNED: tl.constexpr,
    S_ZERO: tl.constexpr, S_INF: tl.constexpr, S_MODE: tl.constexpr,
):  # fmt: skip
    """rules.level by "amax": bound / reach, if NARROW rounded to a format."""
    found = tl.div_rn(bound, reach)
    beyond = (found == float("inf")) & (bound < float("inf"))
    found = tl.where(beyond, 3.4028234663852886e38, found)
    if NARROW:
        bits = tl.zeros(found.shape, tl.uint32)
        narrow = floating(
            found, found, bits, s0, s1, s2, s3, s4, S_SIGNED, S_ZERO, S_INF, 0, S_MODE
        )
        found = tl.where(bound == 0.0, found, narrow)
    return found


@triton.jit(do_not_specialize=_NUMBERS)
def quantize(
    x,
    result,
    scale,
    key,
    rows,
    terms,
    across,
    step,
    bands,
    blocks,
    x_n,
    x_i,
    x_k,
    y_n,
    y_i,
    y_k,
    reach,
    headroom,
    edge,
    emax,
    lowest,
    top,
    c0,
    c1,
    c2,
    c3,
    c4,
    s0,
    s1,
    s2,
    s3,
    s4,
    ADJACENT: tl.constexpr,
    POWER: tl.constexpr,
    NARROW: tl.constexpr,
    S_SIGNED: tl.constexpr,
    S_ZERO: tl.constexpr,
    S_INF: tl.constexpr,
    S_MODE: tl.constexpr,
    INTEGER: tl.constexpr,
    SIGNED: tl.constexpr,
    ZERO: tl.constexpr,
    INF: tl.constexpr,
    RANDOM: tl.constexpr,
    MODE: tl.constexpr,
    BANDS: tl.constexpr,
    ACROSS: tl.constexpr,
    DEEP: tl.constexpr,
):
    """x (batches, rows, terms) in blocks of `across` rows and `step` terms, the last ones shorter:
    scale (batches, bands, blocks), of each the largest magnitude by a rule, and the elements.

    x_n.., y_n..: strides of x and of the result; ADJACENT: 1 where those of terms are 1, 2 where
    those of rows are.  POWER: see `_power`, else `_quotient`.  c0.., s0..: of the format, see
    triton_elements.elements, and of the scale's.
    Program: BANDS bands of a batch, one block of each; ACROSS, DEEP: powers of two, at least across
    and step.
    """
    if ADJACENT == 1:
        x_k, y_k = 1, 1
    if ADJACENT == 2:
        x_i, y_i = 1, 1
    block, rest = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    tall = tl.cdiv(bands, BANDS)
    batch = rest // tall
    band = rest % tall * BANDS + tl.arange(0, BANDS)
    own, k = tl.arange(0, ACROSS), tl.arange(0, DEEP)
    row = (band * across)[:, None] + own[None, :]
    term = block * step + k
    there = (own < across)[None, :] & (row < rows)
    inside = there[:, :, None] & ((k < step) & (term < terms))[None, None, :]
    at = batch * x_n + (row * x_i)[:, :, None] + (term * x_k)[None, None, :]
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    bound = as_float(tl.max(tl.max(float_bits(tl.abs(v)).to(tl.int32), 2), 1).to(tl.uint32))
    if not SIGNED:
        bound = tl.where(is_finite(bound), bound, float("nan"))
    if POWER:
        found = _power(bound, headroom, edge, emax, lowest, top, s3)
    else:
        found = _quotient(bound, reach, s0, s1, s2, s3, s4, NARROW, S_SIGNED, S_ZERO, S_INF, S_MODE)
    tl.store(scale + (batch * bands + band) * blocks + block, found, mask=band < bands)
    index = ((batch * rows + row) * terms)[:, :, None] + term[None, None, :]
    v = made(
        v, found[:, None, None], 0.0, index, key, c0, c1, c2, c3, c4, True, INTEGER, SIGNED, ZERO,
        INF, RANDOM, MODE,
    )  # fmt: skip
    to = batch * y_n + (row * y_i)[:, :, None] + (term * y_k)[None, None, :]
    tl.store(result + to, v.to(result.dtype.element_ty), mask=inside)
