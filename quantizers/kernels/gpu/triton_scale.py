"""From the extremes of a granule to its range, scale and zero point, within Triton kernels."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_levels import narrow, outer_of, step_of
from .triton_numbers import is_finite, larger, nearest, number, ordered


@triton.jit
def _moved(old, new, weight):
    half = old * 0.5
    return ((new * 0.5 - half) * weight + half) * 2.0


@triton.jit
def _pushed(
    low, high, finite, old_low, old_high, running_low, running_high, running_share, lows, highs,
    window, LAST: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Moves a history on by a range, where it is finite, and the range in use: see ranges.History.

    old_low, old_high: that as it was; WINDOW: a power of two, at least the window.
    """
    i = tl.arange(0, WINDOW)
    inside = i < window
    later = inside & (i > 0)
    least, most = (
        tl.load(lows + i, mask=inside, other=0.0),
        tl.load(highs + i, mask=inside, other=0.0),
    )
    new_least = tl.where(i == 0, low, tl.load(lows + i - 1, mask=later, other=0.0))
    new_most = tl.where(i == 0, high, tl.load(highs + i - 1, mask=later, other=0.0))
    least, most = tl.where(finite, new_least, least), tl.where(finite, new_most, most)
    tl.debug_barrier()  # what is moved here is what other threads read above
    tl.store(lows + i, least, mask=inside)
    tl.store(highs + i, most, mask=inside)
    if LAST:
        inside = i == 0
    found_low = number(tl.min(tl.where(inside, ordered(least), 0x7FFFFFFF), 0))
    found_high = number(tl.max(tl.where(inside, ordered(most), -0x80000000), 0))
    none = (found_low == 0.0) & (found_high == 0.0)
    found_low, found_high = tl.where(none, old_low, found_low), tl.where(none, old_high, found_high)
    tl.store(running_low, found_low)
    tl.store(running_high, found_high)
    tl.store(running_share, tl.where((found_low != 0.0) | (found_high != 0.0), 1.0, 0.0))


@triton.jit
def _range(
    low, high, kept_low, kept_high, kept_share, running_low, running_high, running_share,
    running_steps, lows, highs, writes, momentum, window, SYMMETRIC: tl.constexpr,
    RUNNING: tl.constexpr, UPDATE: tl.constexpr, USE: tl.constexpr, PAST: tl.constexpr,
    WINDOW: tl.constexpr,
):  # fmt: skip
    """The range that a rule gives for these extremes: see ranges, Ema and History.

    kept_low..: the running range as it was; running_low.., lows, highs: where it is moved, by who
    `writes`.  PAST: the range is that of tensors before, "" for one that counts this one in, else
    "ema", or of a history of `window` tensors "max" or "last".
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
        none = (old_low == 0.0) & (old_high == 0.0)
        used_low, used_high = tl.where(none, low, old_low), tl.where(none, high, old_high)
        if UPDATE:
            if WINDOW > 0:
                if writes:
                    _pushed(
                        low, high, finite, old_low, old_high, running_low, running_high,
                        running_share, lows, highs, window, PAST == "last", WINDOW,
                    )  # fmt: skip
            else:
                rate = tl.where(share == 0.0, 1.0, momentum)
                if PAST == "ema":
                    rate = tl.where(none, 1.0, rate)
                old_low = tl.where(finite, _moved(old_low, low, rate), old_low)
                old_high = tl.where(finite, _moved(old_high, high, rate), old_high)
                share = tl.where(finite | (share > 0.0), 1.0, 0.0)
                tl.debug_barrier()  # what is moved here may be what other threads read above
                tl.store(running_low, old_low, mask=writes)
                tl.store(running_high, old_high, mask=writes)
                tl.store(running_share, share, mask=writes)
            steps = tl.load(running_steps, mask=writes, other=0)
            tl.store(running_steps, steps + finite.to(tl.int64), mask=writes)
        if PAST == "":
            used_low = tl.where(share > 0.0, old_low, low)
            used_high = tl.where(share > 0.0, old_high, high)
        if USE:
            low = tl.where(finite, used_low, float("nan"))
            high = tl.where(finite, used_high, float("nan"))
    return low, high


@triton.jit
def spread(
    least, most, lowest, largest, scale, zero_point, outer, kept_low, kept_high, kept_share,
    running_low, running_high, running_share, running_steps, lows, highs, writes, momentum, window,
    reach, prescale, rule, target, SYMMETRIC: tl.constexpr, RUNNING: tl.constexpr,
    UPDATE: tl.constexpr, USE: tl.constexpr, PAST: tl.constexpr, WINDOW: tl.constexpr,
    AFFINE: tl.constexpr, SIGNED: tl.constexpr, LEVELS: tl.constexpr, RECIPROCAL: tl.constexpr,
    PRESCALED: tl.constexpr, POWER: tl.constexpr, NARROW: tl.constexpr, S_SIGNED: tl.constexpr,
    S_ZERO: tl.constexpr, S_INF: tl.constexpr, S_MODE: tl.constexpr,
):  # fmt: skip
    """From a granule's extremes, ordered, what elements are divided by (multiplied with, if
    RECIPROCAL), (1,), and the zero point, fp32: see steps.quantize.  Stored by who `writes`: scale,
    zero point, and of LEVELS 2 or PRESCALED outer, see triton_blocks.quantize.

    lowest, largest: of the format; rule, target, LEVELS..: see triton_levels.step_of.
    """
    least, most = _range(
        number(least), number(most), kept_low, kept_high, kept_share, running_low, running_high,
        running_share, running_steps, lows, highs, writes, momentum, window, SYMMETRIC, RUNNING,
        UPDATE, USE, PAST, WINDOW,
    )  # fmt: skip
    one = tl.arange(0, 1)
    zero = 0.0
    if AFFINE:
        least = tl.where(least > 0.0, 0.0, least)
        most = tl.where(most <= 0.0, 0.0, most)  # -0.0 too
        half = tl.full((1,), most * 0.5 - least * 0.5, tl.float32)
        found = tl.div_rn(half, tl.zeros_like(half) + (largest - lowest) * 0.5)
        if NARROW:
            found = narrow(found, half, *target, S_SIGNED, S_ZERO, S_INF, S_MODE)
        by = found
        divisor = tl.where(found == 0.0, float("inf"), found)
        zero = lowest - nearest(tl.div_rn(tl.full((1,), least, tl.float32), divisor))
        zero = tl.where(zero < lowest, lowest, zero)
        zero = tl.where(zero > largest, largest, zero)
        zero = tl.where(zero == zero, zero, 0.0)
        tl.store(zero_point + one, zero.to(tl.int32), mask=writes)
    else:
        if SIGNED:
            width = larger(tl.abs(least), tl.abs(most))
        else:
            width = tl.where(most <= 0.0, 0.0, most)
            width = tl.where(is_finite(least), width, float("nan"))
        width = tl.full((1,), width, tl.float32)
        whole, factor = tl.full((1,), 1.0, tl.float32), tl.full((1,), 1.0, tl.float32)
        if LEVELS == 2:
            finite = tl.where(is_finite(width), width, 0.0)
            whole, factor = outer_of(finite, reach, RECIPROCAL)
        if LEVELS == 2 or PRESCALED:
            tl.store(outer + one, tl.div_rn(whole, tl.zeros_like(whole) + prescale), mask=writes)
        found, by = step_of(
            width, whole, factor, *rule, *target, LEVELS, RECIPROCAL, POWER, NARROW, S_SIGNED,
            S_ZERO, S_INF, S_MODE,
        )  # fmt: skip
    tl.store(scale + one, found, mask=writes)
    return by, zero
