"""What kernels are made of: compiled by numba when first used and kept in its on-disk cache.

A kernel is `void kernel(int64 words[])`; each thread of the region takes a share of its work.  The
arithmetic is that of `quantizers.rounding`, `noise` and `quantizer`, operation by operation in
fp32, so that the bits are the same.
"""

from __future__ import annotations

import ctypes
import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core.caching import FunctionCache
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from . import layout
from .team import openmp

f32, i32, i64, u32 = np.float32, np.int32, np.int64, np.uint32
_OPTIONS = {"error_model": "numpy", "boundscheck": False}
_KERNEL = types.void(types.voidptr)


def function(body: Any) -> Any:
    """A function that kernels call."""
    return numba.njit(**_OPTIONS)(body)


#: what a kernel on disk was compiled from and for, besides its own file and its free variables
_FILES = *sorted(Path(__file__).parent.glob("compiled*.py")), Path(layout.__file__)
_ORIGIN = (
    [path.read_bytes() for path in _FILES], numba.__version__, openmp() is None,
    cpu_target.target_context.codegen().magic_tuple(),
)  # fmt: skip


def kernel(body: Any) -> Any:
    """A kernel; `.address` is what `team.run` takes.

    numba names the file of a kernel by its function's name: a name for everything that makes it
    different keeps processes that compile at the same time, on several kinds of machines, from
    storing one kernel as another.
    """
    made_for = [cell.cell_contents for cell in body.__closure__ or ()]
    made_for = [value for value in made_for if isinstance(value, int | str)]
    name = repr((_ORIGIN, Path(body.__code__.co_filename).read_bytes(), made_for))
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    body.__qualname__ = f"{body.__qualname__.partition('.')[0]}_{digest}"
    try:
        return numba.cfunc(_KERNEL, cache=True, **_OPTIONS)(body)
    except Exception:  # nowhere to write, or a damaged cache; a body's own fault comes up again
        with suppress(Exception):
            FunctionCache(body).flush()
        return numba.cfunc(_KERNEL, **_OPTIONS)(body)


def pointer(dtype: Any) -> Any:
    """address (int64) -> a pointer to elements of a numba type."""

    @intrinsic
    def cast(typingctx: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(dtype)(types.int64), generate

    return cast


f32_at, i64_at, i32_at = pointer(types.float32), pointer(types.int64), pointer(types.int32)
i8_at, u8_at = pointer(types.int8), pointer(types.uint8)
i16_at, u16_at = pointer(types.int16), pointer(types.uint16)


@function
def float_bits(x: Any) -> Any:
    return f32(x).view(np.uint32)


@function
def as_float(bits: Any) -> Any:
    return u32(bits).view(np.float32)


# LLVM ends the process where the target has no instruction for these: not with every CPU name.
_TRIPLE, _, _FEATURES = cpu_target.target_context.codegen().magic_tuple()
if "+f16c" in _FEATURES or _TRIPLE.startswith(("aarch64", "arm64")):

    @intrinsic
    def widened(typingctx: Any, half: Any) -> Any:
        """The bits of an fp16 number (uint16) -> float32, exact."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

        return types.float32(types.uint16), generate

    @intrinsic
    def halved(typingctx: Any, x: Any) -> Any:
        """float32 -> the bits of the nearest fp16 number, ties to even (uint16)."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

        return types.uint16(types.float32), generate

else:

    @function
    def widened(half: Any) -> Any:
        magnitude = u32(half & u32(0x7FFF)) << u32(13)
        value = f32(as_float(magnitude) * f32(2.0**112))
        if magnitude >= u32(0x0F800000):
            value = as_float(magnitude | u32(0x7F800000))
        return as_float(float_bits(value) | (u32(half & u32(0x8000)) << u32(16)))

    @function
    def halved(x: Any) -> Any:
        bits, size = float_bits(x), f32(abs(x))
        rounded = u32(float_bits(size) + u32(0xFFF) + ((bits >> u32(13)) & u32(1)))
        half = u32(u32(rounded - u32(112 << 23)) >> u32(13))
        half = u32(i32(np.rint(f32(size * f32(2.0**24))))) if size < f32(2.0**-14) else half
        half = u32(0x7C00) if size >= f32(65520.0) else half
        half = half if x == x else u32(0x7E00)
        return np.uint16(half | ((bits >> u32(16)) & u32(0x8000)))


if openmp() is None:

    @function
    def thread() -> Any:
        return i64(0)

    @function
    def threads() -> Any:
        return i64(1)

else:
    for _name in ("omp_get_thread_num", "omp_get_num_threads"):
        binding.add_symbol(_name, ctypes.cast(getattr(openmp(), _name), ctypes.c_void_p).value)
    _thread = types.ExternalFunction("omp_get_thread_num", types.int32())
    _threads = types.ExternalFunction("omp_get_num_threads", types.int32())

    @function
    def thread() -> Any:
        return i64(_thread())

    @function
    def threads() -> Any:
        return i64(_threads())


@function
def _mix(x: Any) -> Any:
    x = u32(u32(x ^ (x >> u32(16))) * u32(0x7FEB352D))
    x = u32(u32(x ^ (x >> u32(15))) * u32(0x846CA68B))
    return u32(x ^ (x >> u32(16)))


@function
def noise(index: Any, low: Any, high: Any) -> Any:
    """noise.random_bits of an element below 2^31."""
    return _mix(u32(_mix(u32(index + low)) ^ high))


@function
def _signed(magnitude: Any, x: Any) -> Any:
    return as_float(float_bits(magnitude) | (float_bits(x) & u32(0x80000000)))


@function
def _rounded(mode: Any, x: Any, bits: Any, shift: Any, top: Any) -> Any:
    """x rounded to an integer, in fp32; bits: random, of which 32 - shift are used, top of them."""
    if mode == 0:
        return f32(np.rint(x))
    if mode == 1:
        return f32(np.trunc(x))
    if mode == 2:
        return f32(np.floor(x))
    if mode == 3:
        return f32(np.ceil(x))
    magnitude = f32(abs(x))
    whole = f32(np.floor(magnitude))
    fraction = f32(magnitude - whole)
    if mode == 4:
        up = fraction >= f32(0.5)
    else:
        up = f32(f32(i32(bits >> shift)) + f32(0.5)) < f32(fraction * top)
    return _signed(f32(whole + (f32(1.0) if up else f32(0.0))), x)


@function
def _integer(mode: Any, x: Any, zero: Any, bits: Any, shift: Any, top: Any, constants: Any) -> Any:
    """x / scale -> element; constants: lowest, highest."""
    y = f32(_rounded(mode, x, bits, shift, top) + zero)
    y = constants[0] if y < constants[0] else y
    y = constants[1] if y > constants[1] else y
    return y if y == y else f32(0.0)


@function
def _power(exponent: Any) -> Any:
    return as_float(u32(i32(exponent + i32(127)) << i32(23)))


@function
def _exponent(x: Any) -> Any:
    """The exponent field, -127 where it is 0."""
    return i32(i32((float_bits(x) >> u32(23)) & u32(0xFF)) - i32(127))


@function
def _float(mode: Any, x: Any, source: Any, bits: Any, shift: Any, top: Any, constants: Any) -> Any:
    """x = source / scale -> the value of a format that `rounding.round_to_float` gives."""
    mantissa, lowest, largest, over, signed, has_zero, smallest, has_inf = constants
    infinity, nan = f32(np.inf), f32(np.nan)
    unsigned = signed == f32(0.0)
    if unsigned:
        x = f32(0.0) if x <= f32(0.0) else x
    exponent = _exponent(x)
    if lowest < f32(-126.0):  # else a subnormal's own exponent says nothing
        if exponent == i32(-127):  # 2^24 times as large it is none
            exponent = i32(_exponent(f32(x * f32(2.0**24))) - i32(24))
    exponent = i32(max(i32(lowest), min(exponent, i32(127))) - i32(mantissa))
    half = i32(exponent >> i32(1))
    rest = i32(exponent - half)
    y = f32(f32(x * _power(i32(-half))) * _power(i32(-rest)))
    if lowest > mantissa:  # steps above 1
        if (y == f32(0.0)) & (x != f32(0.0)):  # far below one, yet above 0
            y = _signed(f32(2.0**-30), x)
    y = f32(f32(_rounded(mode, y, bits, shift, top) * _power(half)) * _power(rest))
    magnitude, size = f32(abs(y)), f32(abs(source))
    finite = size < infinity
    y = _signed(over, y) if finite & (magnitude > largest) else y
    y = _signed(smallest, y) if finite & (has_zero == f32(0.0)) & (magnitude < smallest) else y
    if unsigned:
        y = nan if source == -infinity else y
    return nan if (has_inf == f32(0.0)) & (size == infinity) else y


@function
def element(
    target: Any, mode: Any, x: Any, source: Any, zero: Any, bits: Any, shift: Any, top: Any,
    constants: Any,
) -> Any:  # fmt: skip
    """x = source / scale -> element; source: what tells a finite x from one beyond fp32."""
    if target == 0:
        return _float(mode, x, source, bits, shift, top, constants)
    return f32(_integer(mode, x, zero, bits, shift, top, constants))


#: by a source's and a target's number.  A kernel is made, and cached on disk, for a source, a
#: target and a rounding mode, numbered in `serving`, so that only their branches remain in it
SOURCE_BYTES, TARGET_BYTES = (4, 2, 2), (4, 1, 1, 2, 4)


@function
def load(source: Any, address: Any, i: Any) -> Any:
    """Element i of a source at an address, as float32."""
    if source == 0:
        return f32_at(address)[i]
    if source == 1:
        return widened(u16_at(address)[i])
    return as_float(u32(u16_at(address)[i]) << u32(16))


@function
def store(target: Any, address: Any, i: Any, value: Any) -> None:
    if target == 0:
        f32_at(address)[i] = f32(value)
    elif target == 1:
        i8_at(address)[i] = np.int8(i32(value))
    elif target == 2:
        u8_at(address)[i] = np.uint8(i32(value))
    elif target == 3:
        i16_at(address)[i] = np.int16(i32(value))
    else:
        i32_at(address)[i] = np.int32(value)
