"""Noise, rounding and elements for Triton kernels.

The arithmetic is that of `quantizers.noise`, `rounding` and `steps`, operation by operation in
fp32, so that the bits are the same: divisions by `div_rn`, or as `triton_uniform` proves them to
be, and kernels are compiled without fma but where it is asked for.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def float_bits(x):
    return x.to(tl.uint32, bitcast=True)


@triton.jit
def as_float(bits):
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def ordered(x):
    """float32 -> int32 in the order of the numbers; NaN lies beyond the infinities."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def number(key):
    """The inverse of `ordered`."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def is_finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def multiple(n, ALIGNED: tl.constexpr):
    """n, a multiple of ALIGNED, so that the compiler knows."""
    return n // ALIGNED * ALIGNED


@triton.jit
def near_bf16(x):
    """x (fp32) rounded to bf16, to nearest even, which the interpreter's conversion is not."""
    bits = float_bits(x)
    near = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return tl.where(x == x, as_float(near), float("nan"))


@triton.jit
def larger(a, b):
    """The larger, or NaN where one is."""
    return tl.where((a != a) | (b != b), float("nan"), tl.where(a > b, a, b))


@triton.jit
def _mix(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def noise(index, key):
    """noise.random_bits of elements below 2^31.  index: int32; key: int64 -> uint32."""
    low, high = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    return _mix(_mix(index.to(tl.uint32) + low) ^ high)


@triton.jit
def signed(magnitude, x):
    return as_float(float_bits(magnitude) | (float_bits(x) & 0x80000000))


@triton.jit
def nearest(x):
    """To the nearest integer, ties to even."""
    magnitude = tl.abs(x)
    # beyond 2^23 all are integers; below, the sum has none but integers to round to
    near = (magnitude + 8388608.0) - 8388608.0
    return signed(tl.where(magnitude < 8388608.0, near, magnitude), x)


@triton.jit
def rounded(x, bits, RANDOM: tl.constexpr, MODE: tl.constexpr):
    """x rounded to an integer, in fp32; bits: random, of which the top RANDOM are used."""
    magnitude = tl.abs(x)
    # of a magnitude: the GPU's floor takes a subnormal number for 0, whatever its sign
    whole = tl.floor(magnitude)
    if MODE == "nearest_even":
        y = nearest(x)
    elif MODE == "floor":
        y = signed(whole, x)
        y = tl.where(x < y, y - 1.0, y)
    elif MODE == "ceil":
        y = signed(whole, x)
        y = tl.where(x > y, y + 1.0, y)
    elif MODE == "toward_zero":
        y = signed(whole, x)
    elif MODE == "half_away":
        y = signed(tl.where(magnitude - whole >= 0.5, whole + 1.0, whole), x)
    else:
        draw = (bits >> (32 - RANDOM)).to(tl.int32).to(tl.float32)
        up = draw + 0.5 < (magnitude - whole) * (1 << RANDOM)
        y = signed(tl.where(up, whole + 1.0, whole), x)
    return y


@triton.jit
def integer(x, zero, bits, low, high, RANDOM: tl.constexpr, MODE: tl.constexpr):
    """x / scale -> element, in fp32.  low, high: of the format."""
    y = rounded(x, bits, RANDOM, MODE) + zero
    y = tl.where(y < low, low, y)
    y = tl.where(y > high, high, y)
    return tl.where(y == y, y, 0.0)


@triton.jit
def _power(exponent):
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _exponent(x):
    """The exponent field, -127 where it is 0."""
    return ((float_bits(x) >> 23) & 0xFF).to(tl.int32) - 127


@triton.jit
def floating(
    x, source, bits, mantissa, lowest, largest, over, smallest, SIGNED: tl.constexpr,
    ZERO: tl.constexpr, INF: tl.constexpr, RANDOM: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """x = source / scale -> the value of a format that `rounding.round_to_float` gives.

    mantissa, lowest, largest, over, smallest: of the format: bits, exponent, values.
    MODE: rounding's, or "near": to nearest, ties to even, of formats between 2^-126 and 2^100.
    """
    if not SIGNED:
        x = tl.where(x <= 0.0, 0.0, x)
    if MODE == "near":
        # a number whose last place is the step there: what is added to it is rounded to steps
        power = tl.maximum(x.to(tl.int32, bitcast=True) & 0x7F800000, (lowest + 127) << 23)
        power = tl.minimum(power, 230 << 23) + ((23 - mantissa) << 23)
        large = power.to(tl.float32, bitcast=True)
        y = signed((tl.abs(x) + large) - large, x)
    else:
        # 2^24 times as large no subnormal is one; its own exponent says nothing
        own = _exponent(x)
        own = tl.where(own == -127, _exponent(x * 16777216.0) - 24, own)
        exponent = tl.maximum(own, lowest)
        exponent = tl.minimum(exponent, 127) - mantissa
        half = exponent >> 1
        rest = exponent - half
        y = (x * _power(-half)) * _power(-rest)
        # far below a step above 1, yet above 0
        gone = (y == 0.0) & (x != 0.0) & (lowest > mantissa)
        y = tl.where(gone, signed(tl.full(y.shape, 2.0**-30, tl.float32), x), y)
        y = (rounded(y, bits, RANDOM, MODE) * _power(half)) * _power(rest)
    magnitude, size = tl.abs(y), tl.abs(source)
    finite = size < float("inf")
    y = tl.where(finite & (magnitude > largest), signed(tl.zeros_like(y) + over, y), y)
    if not ZERO:
        y = tl.where(finite & (magnitude < smallest), signed(tl.zeros_like(y) + smallest, y), y)
    if not SIGNED:
        y = tl.where(source == float("-inf"), float("nan"), y)
    if not INF:
        y = tl.where(size == float("inf"), float("nan"), y)
    return y


@triton.jit
def units(BLOCK: tl.constexpr, UNIT: tl.constexpr):
    """Places 0 .. BLOCK - 1 as those that are multiples of UNIT, and what follows each: one axis
    where UNIT is 1, else two."""
    if UNIT == 1:
        return tl.arange(0, BLOCK), 0
    else:
        return tl.arange(0, BLOCK // UNIT)[:, None] * UNIT, tl.arange(0, UNIT)[None, :]


@triton.jit
def place(
    i, lane, row, index_step, granule_step, sizes, x_steps, result_steps, index_steps,
    granule_steps, AXES: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Where the elements at places i + lane of the walk lie: in x and in the result, their logical
    index, their granule.  int32.

    UNIT: see units; above 1, it divides i, the row, and x's and the result's steps.
    """
    if AXES == 0:
        return i, i, i, i * granule_step  # all of a tensor in order: it is its own index
    across = i % row
    x, result = across, across
    index, granule = (across + lane) * index_step, (across + lane) * granule_step
    rest = i // row
    for axis in tl.static_range(AXES):
        own = rest
        if axis < AXES - 1:
            own = rest % sizes[AXES - 1 - axis]
            rest = rest // sizes[AXES - 1 - axis]
        x += own * x_steps[AXES - 1 - axis]
        result += own * result_steps[AXES - 1 - axis]
        index += own * index_steps[AXES - 1 - axis]
        granule += own * granule_steps[AXES - 1 - axis]
    if UNIT > 1:
        x = tl.max_contiguous(tl.multiple_of(x + lane, (1, UNIT)), (1, UNIT))
        result = tl.max_contiguous(tl.multiple_of(result + lane, (1, UNIT)), (1, UNIT))
    return x, result, index, granule
