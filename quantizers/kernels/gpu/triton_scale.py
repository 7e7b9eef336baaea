"""From the extremes of a granule to its range, scale and zero point, within Triton kernels."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_numbers import is_finite, larger, nearest, number


@triton.jit
def _moved(old, new, weight):
    half = old * 0.5
    return ((new * 0.5 - half) * weight + half) * 2.0


@triton.jit
def _range(
    low, high, kept_low, kept_high, kept_share, running_low, running_high, running_share,
    running_steps, writes, momentum, SYMMETRIC: tl.constexpr, RUNNING: tl.constexpr,
    UPDATE: tl.constexpr, USE: tl.constexpr,
):  # fmt: skip
    """The range that a rule gives for these extremes: see ranges, Ema.

    kept_low..: the running range as it was; running_low..: where it is moved, by who `writes`.
    """
    if SYMMETRIC:
        high = larger(tl.abs(low), tl.abs(high))
        low = high * -1.0
    if RUNNING:
        finite = is_finite(low) & is_finite(high)
        share = tl.load(kept_share)
        divisor = tl.where(share == 0.0, 1.0, share)
        old_low = tl.div_rn(tl.load(kept_low), divisor)
        old_high = tl.div_rn(tl.load(kept_high), divisor)
        if UPDATE:
            rate = tl.where(share == 0.0, 1.0, momentum)
            old_low = tl.where(finite, _moved(old_low, low, rate), old_low)
            old_high = tl.where(finite, _moved(old_high, high, rate), old_high)
            share = tl.where(finite | (share > 0.0), 1.0, 0.0)
            tl.debug_barrier()  # what is moved here may be what other threads read above
            tl.store(running_low, old_low, mask=writes)
            tl.store(running_high, old_high, mask=writes)
            tl.store(running_share, share, mask=writes)
            steps = tl.load(running_steps, mask=writes, other=0)
            tl.store(running_steps, steps + finite.to(tl.int64), mask=writes)
        if USE:
            low = tl.where(share > 0.0, old_low, low)
            high = tl.where(share > 0.0, old_high, high)
            low = tl.where(finite, low, float("nan"))
            high = tl.where(finite, high, float("nan"))
    return low, high


@triton.jit
def spread(
    least, most, lowest, largest, scale, zero_point, kept_low, kept_high, kept_share, running_low,
    running_high, running_share, running_steps, writes, momentum, SYMMETRIC: tl.constexpr,
    RUNNING: tl.constexpr, UPDATE: tl.constexpr, USE: tl.constexpr, AFFINE: tl.constexpr,
    SIGNED: tl.constexpr,
):  # fmt: skip
    """Scale and zero point, fp32, from a granule's extremes, ordered: see steps.scale_of; stored
    by who `writes`.  lowest, largest: of the format."""
    least, most = _range(
        number(least), number(most), kept_low, kept_high, kept_share, running_low, running_high,
        running_share, running_steps, writes, momentum, SYMMETRIC, RUNNING, UPDATE, USE,
    )  # fmt: skip
    zero = 0.0
    if AFFINE:
        least = tl.where(least > 0.0, 0.0, least)
        most = tl.where(most <= 0.0, 0.0, most)  # -0.0 too
        half = most * 0.5 - least * 0.5
        found = tl.div_rn(half, (largest - lowest) * 0.5)
        divisor = tl.where(found == 0.0, float("inf"), found)
        zero = lowest - nearest(tl.div_rn(least, divisor))
        zero = tl.where(zero < lowest, lowest, zero)
        zero = tl.where(zero > largest, largest, zero)
        zero = tl.where(zero == zero, zero, 0.0)
        tl.store(zero_point, zero.to(tl.int32), mask=writes)
    else:
        if SIGNED:
            width = larger(tl.abs(least), tl.abs(most))
        else:
            width = tl.where(most <= 0.0, 0.0, most)
            width = tl.where(is_finite(least), width, float("nan"))
        found = tl.div_rn(width, largest)
        beyond = (found == float("inf")) & (width < float("inf"))
        found = tl.where(beyond, 3.4028234663852886e38, found)
    tl.store(scale, found, mask=writes)
    return found, zero
