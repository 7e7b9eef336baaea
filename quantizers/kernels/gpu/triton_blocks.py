"""Triton kernels of a quantizer in blocks of a matrix: from a block to its scale and elements."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_candidates import best_of
from .triton_levels import outer_of, step_of
from .triton_made import before, made
from .triton_numbers import as_float, float_bits, is_finite

_SIZES = ["rows", "terms", "across", "step", "bands", "blocks"]
_STEPS = ["x_n", "x_i", "x_k", "y_n", "y_i", "y_k"]
_RULE = ["rule", "target", "tops", "c0", "c1"]


@triton.jit
def _tile(
    x, rows, terms, across, step, bands, blocks, x_n, x_i, x_k, ADJACENT: tl.constexpr,
    UNIT: tl.constexpr, WHOLE: tl.constexpr, SIGNED: tl.constexpr, BANDS: tl.constexpr,
    ACROSS: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """A program's numbers, (BANDS, ACROSS, DEEP), which of them there are, the largest magnitude of
    each band, and batch, bands, block, rows and terms."""
    x_n, x_i, x_k = x_n * UNIT, x_i * UNIT, x_k * UNIT
    if ADJACENT == 1:
        x_k = 1
    if ADJACENT == 2:
        x_i = 1
        rows = rows * UNIT
    if ACROSS == 1:
        across = 1
    if WHOLE:
        step = DEEP
    block, rest = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    tall = tl.cdiv(bands, BANDS)
    batch = rest // tall
    band = rest % tall * BANDS + tl.arange(0, BANDS)
    own, k = tl.arange(0, ACROSS), tl.arange(0, DEEP)
    row = (band * across)[:, None] + own[None, :]
    term = block * step + k
    there = (own < across)[None, :] & (row < rows)
    if WHOLE:
        inside = there[:, :, None] & (k >= 0)[None, None, :]
    else:
        inside = there[:, :, None] & ((k < step) & (term < terms))[None, None, :]
    at = batch * x_n + (row * x_i)[:, :, None] + (term * x_k)[None, None, :]
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    bound = as_float(tl.max(tl.max(float_bits(tl.abs(v)).to(tl.int32), 2), 1).to(tl.uint32))
    if not SIGNED:
        bound = tl.where(is_finite(bound), bound, float("nan"))
    return v, inside, bound, batch, band, block, row, rows, term


@triton.jit(do_not_specialize=[*_SIZES, "x_n", "x_i", "x_k"])
def measure(
    x,
    ends,
    rows,
    terms,
    across,
    step,
    bands,
    blocks,
    x_n,
    x_i,
    x_k,
    ADJACENT: tl.constexpr,
    UNIT: tl.constexpr,
    WHOLE: tl.constexpr,
    BANDS: tl.constexpr,
    ACROSS: tl.constexpr,
    DEEP: tl.constexpr,
):
    """ends (int32, 0 before): the bits of the largest magnitude of all finite blocks; the rest as
    in `quantize`."""
    _, _, bound, _, _, _, _, _, _ = _tile(
        x, rows, terms, across, step, bands, blocks, x_n, x_i, x_k, ADJACENT, UNIT,
        WHOLE, True, BANDS, ACROSS, DEEP,
    )  # fmt: skip
    finite = tl.where(is_finite(bound), bound, 0.0)
    tl.atomic_max(ends, tl.max(float_bits(finite).to(tl.int32), 0))


@triton.jit(do_not_specialize=[*_SIZES, *_STEPS, *_RULE])
def quantize(
    x,
    result,
    scale,
    outer,
    ends,
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
    prescale,
    rule,
    target,
    tops,
    c0,
    c1,
    c2,
    c3,
    c4,
    ADJACENT: tl.constexpr,
    UNIT: tl.constexpr,
    WHOLE: tl.constexpr,
    CANDIDATES: tl.constexpr,
    SQUARED: tl.constexpr,
    LEVELS: tl.constexpr,
    RECIPROCAL: tl.constexpr,
    PRESCALED: tl.constexpr,
    POWER: tl.constexpr,
    INVERSE: tl.constexpr,
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

    x_n.., y_n..: strides of x and of the result, in UNIT; ADJACENT: 1 where those of terms are 1, 2
    where those of rows are, and rows are in UNIT.  WHOLE: no block is shorter than DEEP.
    c0..: of the format, see triton_elements.elements; rule, target: see triton_levels.step_of.
    LEVELS 2: outer follows from ends, see `measure`, and reach, what the largest magnitude becomes.
    PRESCALED: elements of x * prescale, by which outer is divided.  INVERSE: scales are powers of
    two that have an inverse: products with it are the quotients.
    CANDIDATES: how many tops are tried, see triton_candidates.best_of; 0: one of `rule`.
    Program: BANDS bands of a batch, one block of each; ACROSS, DEEP: powers of two, at least across
    and step.
    """
    v, inside, bound, batch, band, block, row, rows, term = _tile(
        x, rows, terms, across, step, bands, blocks, x_n, x_i, x_k, ADJACENT, UNIT,
        WHOLE, SIGNED, BANDS, ACROSS, DEEP,
    )  # fmt: skip
    y_n, y_i, y_k = y_n * UNIT, y_i * UNIT, y_k * UNIT
    if ADJACENT == 1:
        y_k = 1
    if ADJACENT == 2:
        y_i = 1
    whole, factor = tl.full((1,), 1.0, tl.float32), tl.full((1,), 1.0, tl.float32)
    if LEVELS == 2:
        bits = tl.load(ends + tl.arange(0, 1))
        whole, factor = outer_of(as_float(bits.to(tl.uint32)), reach, RECIPROCAL)
    stored = whole
    if LEVELS == 2 or PRESCALED:
        stored = tl.div_rn(whole, tl.zeros_like(whole) + prescale)
        first = (tl.program_id(0) + tl.arange(0, 1)) == 0
        tl.store(outer + tl.arange(0, 1), stored, mask=first)
    if CANDIDATES > 0:
        found, by = best_of(
            v, inside, bound, whole, factor, stored, prescale, tops, rule, target, c0, c1, c2, c3,
            c4, CANDIDATES, SQUARED, LEVELS, RECIPROCAL, PRESCALED, NARROW, S_SIGNED, S_ZERO, S_INF,
            S_MODE, INTEGER, SIGNED, ZERO, INF, ACROSS, DEEP,
        )  # fmt: skip
    else:
        found, by = step_of(
            bound, whole, factor, *rule, *target, LEVELS, RECIPROCAL, POWER, NARROW, S_SIGNED,
            S_ZERO, S_INF, S_MODE,
        )  # fmt: skip
    tl.store(scale + (batch * bands + band) * blocks + block, found, mask=band < bands)
    v, by = before(v, by[:, None, None], prescale, PRESCALED, RECIPROCAL)
    index = ((batch * rows + row) * terms)[:, :, None] + term[None, None, :]
    if INVERSE:
        v = v * tl.div_rn(tl.zeros_like(by) + 1.0, tl.where(by == 0.0, float("inf"), by))
    v = made(
        v, by, 0.0, index, key, c0, c1, c2, c3, c4, not INVERSE, INTEGER, SIGNED, ZERO, INF, RANDOM,
        MODE,
    )  # fmt: skip
    to = batch * y_n + (row * y_i)[:, :, None] + (term * y_k)[None, None, :]
    tl.store(result + to, v.to(result.dtype.element_ty), mask=inside)
