"""What kernels are made of: compiled by numba when first used and kept in its on-disk cache.

A kernel is `void kernel(int64 words[])`; each thread of the region takes a share of its work.  A
part of one is `void part(int64 words[], int64 start, int64 end)`: kernels `call` it by its address.
"""

from __future__ import annotations

import ctypes
import hashlib
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from . import layout
from .remarks import Remarks
from .team import openmp

f32, f64, i32, i64, u32 = np.float32, np.float64, np.int32, np.int64, np.uint32
_OPTIONS = {"error_model": "numpy", "boundscheck": False}
_KERNEL = types.void(types.int64)
PART = types.void(types.int64, types.int64, types.int64)


def function(body: Any) -> Any:
    """A function that kernels call, and nothing else: it has no wrappers to compile."""
    alone = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return numba.njit(forceinline=True, **alone, **_OPTIONS)(body)


@cache
def _compiled(folder: Path) -> list[bytes]:
    """The files of compiled kernels in a folder, which may import one another."""
    return [path.read_bytes() for path in sorted(folder.glob("compiled*.py"))]


#: what a kernel on disk was compiled from and for, besides its own folder and its free variables
_ORIGIN = (
    _compiled(Path(__file__).parent), Path(layout.__file__).read_bytes(), numba.__version__,
    openmp() is None, cpu_target.target_context.codegen().magic_tuple(),
)  # fmt: skip


@cache
def _announce() -> Remarks:
    return Remarks()


def _made_for(value: Any) -> Any:
    """What makes a function different: its free variables, those of functions among them too."""
    body = getattr(value, "py_func", getattr(value, "_defn", value))
    if not hasattr(body, "__code__"):
        return repr(value)
    cells = body.__closure__ or ()
    return body.__module__, body.__qualname__, [_made_for(cell.cell_contents) for cell in cells]


def kernel(body: Any, kind: Any = _KERNEL) -> Any:
    """A kernel; `.address` is what `team.run` takes.

    numba names the file of a kernel by its function's name: a name for everything that makes it
    different keeps processes that compile at the same time, on several kinds of machines, from
    storing one kernel as another.  Its own key of what is in a file holds the functions that a
    kernel calls, which are others in each process.
    """
    name = repr((_ORIGIN, _compiled(Path(body.__code__.co_filename).parent), _made_for(body)))
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    body.__qualname__ = f"{body.__qualname__.partition('.')[0]}_{digest}"
    made: Any = CFunc(body, (kind.args, kind.return_type), {}, _OPTIONS)
    try:
        made._cache = FunctionCache(body)
        made._cache._index_key = lambda signature, codegen: (signature, codegen.magic_tuple())
        new = not any(Path(made._cache.cache_path).glob(f"*.{body.__qualname__}-*.nbi"))
        said = _announce() if new else None
        made.compile()
        if said is not None:
            said.add()
    except Exception:  # nowhere to write, or a damaged cache; a body's own fault comes up again
        with suppress(Exception):
            FunctionCache(body).flush()
        made = numba.cfunc(kind, **_OPTIONS)(body)
    return made


def pointer(dtype: Any) -> Any:
    """address (int64) -> a pointer to elements of a numba type."""

    @intrinsic
    def cast(typingctx: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(dtype)(types.int64), generate

    return cast


f32_at, i64_at, i32_at = pointer(types.float32), pointer(types.int64), pointer(types.int32)
f64_at = pointer(types.float64)
i8_at, u8_at = pointer(types.int8), pointer(types.uint8)
i16_at, u16_at = pointer(types.int16), pointer(types.uint16)


@function
def float_bits(x: Any) -> Any:
    return f32(x).view(np.uint32)


@function
def as_float(bits: Any) -> Any:
    return u32(bits).view(np.float32)


@function
def fl24(a: Any, b: Any) -> Any:
    """The product of two fp32 numbers to 24 significant bits, ties to even, whatever its exponent:
    float64."""
    exact = f64(f64(a) * f64(b))
    bits = exact.view(np.int64)
    rounded = i64(i64(bits + i64(0xFFFFFFF) + ((bits >> i64(29)) & i64(1))) & i64(~0x1FFFFFFF))
    return rounded.view(np.float64) if abs(exact) < f64(np.inf) else exact


# LLVM ends the process where the target has no instruction for these: not with every CPU name.
_TRIPLE, _, _FEATURES = cpu_target.target_context.codegen().magic_tuple()


def has(feature: str) -> bool:
    """Whether kernels may use what LLVM calls so."""
    return f"+{feature}" in _FEATURES


def has_bf16() -> bool:
    """Whether kernels may use bf16 units of 512 bits, and no faster ones of torch's lie idle."""
    return has("avx512bf16") and not has("amx-bf16")


if has("f16c") or _TRIPLE.startswith(("aarch64", "arm64")):

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
