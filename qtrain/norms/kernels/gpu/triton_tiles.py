"""What the Triton passes of norms share: tiles of elements and channels, and how an output rounds.

x is (M, C) in memory, a row with one element of every channel, or with PLANES (N, C, width), the
elements of a channel in runs of `width`; they are numbered in the order of (N, *S) either way.
"""

from __future__ import annotations

import triton
import triton.language as tl

from quantizers.kernels.gpu.triton_numbers import multiple, near_bf16


@triton.jit
def place(e, c, channels, width, PLANES: tl.constexpr):
    """Where element e of channel c lies, of as many of both."""
    if PLANES:
        at = e // width * (channels * width) + c * width + e % width
    else:
        at = e * channels + c
    return at


@triton.jit
def places(e, c, channels, width, PLANES: tl.constexpr, ALIGNED: tl.constexpr):
    """Where elements e (ROWS,) of channels c (COLUMNS,) lie: int32 (ROWS, COLUMNS).  ALIGNED: what
    width is a multiple of, so that as many neighbours are read at once."""
    if PLANES:
        width = multiple(width, ALIGNED)
    return place(e[:, None], c[None, :], channels, width, PLANES)


@triton.jit
def rounded(x, ROUNDING: tl.constexpr):
    """x (fp32) rounded to fp16 (1), bf16 (2), or as it is (0)."""
    y = x
    if ROUNDING == 1:
        y = x.to(tl.float16).to(tl.float32)
    if ROUNDING == 2:
        y = near_bf16(x)
    return y


@triton.jit
def keep(result, at, value, inside, ROUNDING: tl.constexpr):
    """value, rounded, at places of the result, whose numbers are at least as fine."""
    tl.store(result + at, rounded(value, ROUNDING).to(result.dtype.element_ty), mask=inside)


@triton.jit
def sign(x):
    return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, 0.0))


@triton.jit
def before_relu(grad, centered, scale, shift, ROUNDING: tl.constexpr):
    """The gradient before the ReLU of centered * scale + shift, rounded."""
    return tl.where(rounded(centered * scale + shift, ROUNDING) <= 0.0, 0.0, grad)


@triton.jit
def stabilized(sigma, eps, STABLE: tl.constexpr):
    """What the norm divides by: see Deviation.stabilized."""
    if STABLE == "root":
        divisor = tl.sqrt_rn(sigma * sigma + eps)
    elif STABLE == "one":
        divisor = tl.zeros_like(sigma) + 1.0
    else:
        divisor = sigma + eps
    return divisor


@triton.jit
def folded(divisor, weight, bias, c, inside, WEIGHT: tl.constexpr, BIAS: tl.constexpr):
    """Scale and shift of channels c: see normalize.folded."""
    one = tl.zeros_like(divisor) + 1.0
    shift = tl.zeros_like(divisor)
    if WEIGHT:
        one = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        shift = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    return tl.div_rn(one, divisor), shift
