"""Triton kernels of a few numbers of each channel: COLUMNS channels a program."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_tiles import folded, place, rounded, stabilized


@triton.jit
def _channels(channels, COLUMNS: tl.constexpr):
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    return c, c < channels


@triton.jit
def affine(
    sigma,
    weight,
    bias,
    scale,
    shift,
    channels,
    eps,
    STABLE: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Scale and shift of each channel."""
    c, there = _channels(channels, COLUMNS)
    divisor = stabilized(tl.load(sigma + c, mask=there, other=1.0), eps, STABLE)
    own_scale, own_shift = folded(divisor, weight, bias, c, there, WEIGHT, BIAS)
    tl.store(scale + c, own_scale, mask=there)
    tl.store(shift + c, own_shift, mask=there)


@triton.jit
def _moved(old, new, weight):
    """torch.lerp."""
    near = old + weight * (new - old)
    far = new - (new - old) * (1.0 - weight)
    return tl.where(tl.abs(weight) < 0.5, near, far)


@triton.jit
def track(
    mean,
    sigma,
    running_mean,
    running_var,
    steps,
    channels,
    momentum,
    unbiased,
    COUNTED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Moves the running statistics: of sigma the variance, times `unbiased`; counts the step."""
    c, there = _channels(channels, COLUMNS)
    deviation = tl.load(sigma + c, mask=there, other=0.0)
    old = tl.load(running_mean + c, mask=there, other=0.0)
    tl.store(running_mean + c, _moved(old, tl.load(mean + c, mask=there), momentum), mask=there)
    old = tl.load(running_var + c, mask=there, other=0.0)
    new = deviation * deviation * unbiased
    tl.store(running_var + c, _moved(old, new, momentum), mask=there)
    if COUNTED:
        if tl.program_id(0) == 0:
            tl.store(steps, tl.load(steps) + 1)


@triton.jit(do_not_specialize=["each"])
def images(
    x,
    lows,
    highs,
    mean,
    scale,
    shift,
    result,
    channels,
    width,
    each,
    GATHERED: tl.constexpr,
    RELU: tl.constexpr,
    ROUNDING: tl.constexpr,
    PLANES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The outputs (2, C), fp32, of each channel's smallest and largest x: those among lows and
    highs (C, each), or when GATHERED among the elements of x that they name.  NaN is none; where a
    channel has one, its mean is NaN."""
    c, there = _channels(channels, COLUMNS)
    low = tl.full((COLUMNS,), float("inf"), tl.float32)
    high = tl.full((COLUMNS,), float("-inf"), tl.float32)
    for j in range(each):
        if GATHERED:
            e = tl.load(lows + c * each + j, mask=there, other=0).to(tl.int32)
            below = tl.load(x + place(e, c, channels, width, PLANES), mask=there, other=0.0)
            below = below.to(tl.float32)
            above = below
        else:
            below = tl.load(lows + c * each + j, mask=there, other=0.0)
            above = tl.load(highs + c * each + j, mask=there, other=0.0)
        low, high = tl.where(below < low, below, low), tl.where(above > high, above, high)
    middle = tl.load(mean + c, mask=there, other=0.0)
    s = tl.load(scale + c, mask=there, other=0.0)
    b = tl.load(shift + c, mask=there, other=0.0)
    low = rounded((low - middle) * s + b, ROUNDING)
    high = rounded((high - middle) * s + b, ROUNDING)
    if RELU:
        low, high = tl.where(low < 0.0, 0.0, low), tl.where(high < 0.0, 0.0, high)
    tl.store(result + c, low, mask=there)
    tl.store(result + channels + c, high, mask=there)
