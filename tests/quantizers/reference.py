"""The slow, obvious version of `quantizers`: one Python float (float64) at a time.

It is the specification.  It shares no code with the fast path: the formats' values are enumerated
from their declared widths, rounding searches the sorted list of values, blocks are loops, noise is
made of Python integers.  `fl32` marks every place where the specification rounds to fp32.

Sources: OCP 8-bit FP and MX specifications 1.0 (formats); IEEE 754-2019 4.3.1 (ties);
lowbias32 and SplitMix64 (noise, see noise.py).
"""

from __future__ import annotations

import bisect
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from quantizers import FloatFormat, Format, IntFormat
from quantizers.formats import Overflow

MOST = (2 - 2.0**-23) * 2.0**127  # fp32's largest
Rule = Callable[[list[float]], tuple[float, float]]
Index = tuple[int, ...]


def fl32(value: float) -> float:
    """The nearest fp32 number, ties to even; +-inf beyond the largest."""
    return float(torch.tensor(value, dtype=torch.float64).to(torch.float32).item())


# Formats


def decode(fmt: FloatFormat, code: int) -> float:
    """(-1)^sign * 2^(field - bias) * 1.fraction;  field 0: 2^(1 - bias) * 0.fraction."""
    bias = 2 ** (fmt.exponent - 1) - 1 if fmt.bias is None else fmt.bias
    fraction = code % 2**fmt.mantissa
    field = code // 2**fmt.mantissa % 2**fmt.exponent
    sign = -1.0 if fmt.signed and code // 2 ** (fmt.mantissa + fmt.exponent) == 1 else 1.0
    all_ones = 2 ** (fmt.exponent + fmt.mantissa) - 1
    if fmt.specials == "ieee" and field == 2**fmt.exponent - 1:
        return math.nan if fraction else sign * math.inf
    if fmt.specials == "fn" and field * 2**fmt.mantissa + fraction == all_ones:
        return math.nan
    if field == 0 and fmt.zero:
        return sign * math.ldexp(fraction / 2**fmt.mantissa, 1 - bias)
    return sign * math.ldexp(1 + fraction / 2**fmt.mantissa, field - bias)


@lru_cache(maxsize=64)
def grid(fmt: FloatFormat) -> list[float]:
    """The finite values >= 0, ascending: position i is bit pattern i.  (Not for fp32: 2^31.)"""
    codes = range(2 ** (fmt.exponent + fmt.mantissa))
    return [value for value in (decode(fmt, code) for code in codes) if math.isfinite(value)]


def bounds(fmt: IntFormat) -> tuple[int, int]:
    """Smallest and largest integer; a symmetric signed format leaves -2^(bits-1) out."""
    if not fmt.signed:
        return 0, 2**fmt.bits - 1
    return -(2 ** (fmt.bits - 1)) + int(fmt.symmetric), 2 ** (fmt.bits - 1) - 1


# Rounding


def goes_up(mode: str, fraction: float, negative: bool, odd: bool, draw: float) -> bool:
    """Whether a magnitude between two neighbours takes the upper one.

    fraction: its position between them, 0 <= fraction < 1; odd: the lower neighbour is odd;
    draw: (u + 1/2) / 2^r for r random bits u.
    """
    if mode == "nearest_even":
        return fraction > 0.5 or (fraction == 0.5 and odd)
    if mode == "half_away":
        return fraction >= 0.5
    if mode == "toward_zero":
        return False
    if mode == "floor":
        return fraction > 0 and negative
    if mode == "ceil":
        return fraction > 0 and not negative
    if mode == "stochastic":
        return draw < fraction
    raise ValueError(f"mode: got {mode!r}")


def round_integer(x: float, mode: str = "nearest_even", draw: float = 0.5) -> float:
    """x rounded to an integer; NaN, +-inf and the sign of zero stay."""
    if not math.isfinite(x):
        return x
    whole = math.floor(abs(x))
    up = goes_up(mode, abs(x) - whole, x < 0, whole % 2 == 1, draw)
    return math.copysign(whole + up, x)


def round_float(
    x: float,
    fmt: FloatFormat,
    mode: str = "nearest_even",
    draw: float = 0.5,
    *,
    overflow: Overflow | None = None,
) -> float:
    """x rounded once to a value of `fmt`; overflow: in place of the format's own rule.

    Beyond the largest value the grid goes on for one more step of the top binade: what rounds to
    that or beyond overflows, in every mode.  Ties: to the even bit pattern; with no mantissa bits
    both are odd, then to the larger magnitude (IEEE 754-2019), zero being even.  A negative number
    in an unsigned format is clipped to +0; without a zero, to the smallest value.  +-inf becomes
    NaN in a format that lacks it.
    """
    if math.isnan(x) or (math.isinf(x) and (fmt.specials != "ieee" or (x < 0 and not fmt.signed))):
        return math.nan
    if math.isinf(x):
        return x
    if not fmt.signed:
        x = x if x > 0 else 0.0
    values = grid(fmt)
    if abs(x) < values[0]:
        return math.copysign(values[0], x)
    beyond = values[-1] + math.ldexp(1.0, math.frexp(values[-1])[1] - 1 - fmt.mantissa)
    below = bisect.bisect_right(values, abs(x)) - 1
    if abs(x) >= beyond:
        up = True
    else:
        upper = values[below + 1] if below + 1 < len(values) else beyond
        fraction = (abs(x) - values[below]) / (upper - values[below])
        if fraction == 0 and abs(x) != values[below]:
            fraction = sys.float_info.min  # less than fp64 holds, and yet above 0
        odd = values[below] != 0 if fmt.mantissa == 0 else below % 2 == 1
        up = goes_up(mode, fraction, x < 0, odd, draw)
    if below + up < len(values):
        return math.copysign(values[below + up], x)
    rule = overflow or fmt.overflow or ("inf" if fmt.specials == "ieee" else "saturate")
    return math.copysign({"inf": math.inf, "nan": math.nan, "saturate": values[-1]}[rule], x)


# Noise


def mix32(x: int) -> int:
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def mix64(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def fold(key: int, value: int) -> int:
    """mix64((mix64(value + golden) ^ key) + golden), modulo 2^64."""
    golden = 0x9E3779B97F4A7C15
    return mix64(((mix64((value + golden) % 2**64) ^ key) + golden) % 2**64)


def random_bits(key: int, index: int) -> int:
    """32 bits: mix32(mix32(lo + k0) ^ (k1 + hi * 0x9E3779B1)); lo, hi: halves of the index."""
    low, high = index % 2**32, index // 2**32
    inner = mix32((low + key) % 2**32)
    return mix32(inner ^ (key // 2**32 + high * 0x9E3779B1) % 2**32)


# Blocks and ranges


def block_sizes(
    sizes: Sequence[tuple[int, int | None]], rest: str, shape: Sequence[int]
) -> list[int]:
    """Elements of a block along each axis.  None: the whole axis; so are unnamed axes, or 1."""
    named = {axis % len(shape): size for axis, size in sizes}
    default = None if rest == "whole" else 1
    wanted = [named.get(axis, default) for axis in range(len(shape))]
    return [
        max(1, size if want is None else min(want, size))
        for want, size in zip(wanted, shape, strict=True)
    ]


def blocks(shape: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[Index, list[Index]]]:
    """(position of the block, indices of its elements in C order); the last may be shorter."""
    counts = [max(1, math.ceil(n / size)) for n, size in zip(shape, sizes, strict=True)]
    for block in itertools.product(*map(range, counts)):
        spans = [
            range(position * size, min((position + 1) * size, n))
            for position, size, n in zip(block, sizes, shape, strict=True)
        ]
        yield block, list(itertools.product(*spans))


def absmax(values: list[float]) -> tuple[float, float]:
    largest = max(map(abs, values))
    return -largest, largest


def minmax(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)


def chunked_minmax(values: list[float], chunks: int) -> tuple[float, float]:
    """Mean of the minima and of the maxima of `chunks` runs of ceil(n / chunks) elements."""
    size = math.ceil(len(values) / chunks)
    parts = [values[start : start + size] for start in range(0, len(values), size)]
    return (
        math.fsum(min(part) for part in parts) / len(parts),
        math.fsum(max(part) for part in parts) / len(parts),
    )


def percentile(values: list[float], fraction: float) -> tuple[float, float]:
    """Quantiles 1 - fraction and fraction: position q * (n - 1) of the sorted values, linearly."""
    ordered = sorted(values)

    def quantile(q: float) -> float:
        position = (len(ordered) - 1) * q
        below = math.floor(position)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (ordered[above] - ordered[below]) * (position - below)

    return quantile(1 - fraction), quantile(fraction)


# The quantizer


def scale_and_zero(
    low: float,
    high: float,
    fmt: Format,
    scale_format: FloatFormat | None = None,
    scale_mode: str = "nearest_even",
) -> tuple[float, int]:
    """Scale and zero point of one block.  scale_format None: fp32.

    symmetric  scale = max(|low|, |high|) / largest, high / largest for an unsigned format
    affine     low, high widened to include 0;  scale = (high / 2 - low / 2) / ((qmax - qmin) / 2);
               zero = qmin - round(low / scale), clamped to qmin .. qmax

    A scale beyond fp32, or beyond a scale format whose overflow is not stated, is the largest; one
    that fp32 makes 0 is a scale format's smallest where that holds no 0.
    """
    low, high = fl32(low), fl32(high)
    if not (math.isfinite(low) and math.isfinite(high)):
        return math.nan, 0
    affine = isinstance(fmt, IntFormat) and not fmt.symmetric
    if affine:
        low, high = min(low, 0.0), max(high, 0.0)
        measured = half = fl32(fl32(high / 2) - fl32(low / 2))
    else:
        measured = width = max(abs(low), abs(high)) if fmt.signed else max(high, 0.0)
    if isinstance(fmt, IntFormat):
        qmin, qmax = bounds(fmt)
        scale = fl32(half / ((qmax - qmin) / 2) if affine else width / qmax)
    else:
        qmin, scale = 0, min(fl32(width / grid(fmt)[-1]), MOST)
    if scale_format is not None and measured != 0:
        over = scale_format.overflow or "saturate"
        scale = round_float(scale, scale_format, scale_mode, overflow=over)
    if not affine or scale == 0 or not math.isfinite(scale):
        return scale, qmin if affine and scale == 0 else 0
    return scale, min(max(qmin - int(round_integer(fl32(low / scale))), qmin), qmax)


def quantize(
    x: Tensor,
    fmt: Format,
    rule: Rule,
    sizes: Sequence[int],
    *,
    scale_format: FloatFormat | None = None,
    scale_mode: str = "nearest_even",
    mode: str = "nearest_even",
    random: int = 0,
    key: int = 0,
) -> tuple[Tensor, Tensor]:
    """(elements, values), float64 of x's shape; both NaN in a block whose scale is not finite.

    rule: range of a list of values; sizes: block size along each axis (`block_sizes`); random:
    random bits of mode "stochastic".  value = fl32((element - zero) * scale), without fl32 where
    x is fp64 and fmt a FloatFormat; finite where the element is.
    """
    elements = torch.full(x.shape, math.nan, dtype=torch.float64)
    values = elements.clone()
    numbers = x.detach().double()
    narrow = x.dtype != torch.float64
    strides = [math.prod(x.shape[axis + 1 :]) for axis in range(x.dim())]
    for _, indices in blocks(x.shape, sizes):
        members = [float(numbers[index]) for index in indices]
        if not all(map(math.isfinite, members)):
            continue
        scale, zero = (
            scale_and_zero(*rule(members), fmt, scale_format, scale_mode) if members else (0.0, 0)
        )
        for index, member in zip(indices, members, strict=True):
            scaled = 0.0 if scale == 0 else member / scale
            scaled = math.copysign(fl32(scaled) if narrow else scaled, member)
            if math.isinf(scaled):  # a finite number, beyond every format
                scaled = math.copysign(sys.float_info.max, member)
            position = sum(i * stride for i, stride in zip(index, strides, strict=True))
            draw = (random_bits(key, position) >> (32 - random)) + 0.5
            if isinstance(fmt, IntFormat):
                qmin, qmax = bounds(fmt)
                element = round_integer(scaled, mode, draw / 2**random) + zero
                element = min(max(element, qmin), qmax)
            else:
                over = fmt.overflow or "saturate"
                element = round_float(scaled, fmt, mode, draw / 2**random, overflow=over)
            value = (element - zero) * scale
            if narrow or isinstance(fmt, IntFormat):
                value = fl32(value)
                if math.isinf(value) and math.isfinite(element):
                    value = math.copysign(MOST, value)
            elements[index], values[index] = element, value
    return elements, values
