"""Fused quantizers for CPU tensors: one pass, no temporaries, the bits of the eager path.

Everything here is optional: where a kernel does not serve a tensor, or numba is missing or fails
(one warning), the functions return None and the eager path computes the same elements.
"""

from __future__ import annotations

import ctypes
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache
from typing import Any

import torch
import torch.utils._python_dispatch
from torch import Tensor

from quantizers.formats import Format, IntFormat, Overflow
from quantizers.granularity import compact_shape
from quantizers.rounding import Rounding

from . import team
from .layout import walk

_ON: ContextVar[bool] = ContextVar("fused quantizers", default=True)
_SOURCES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
_TARGETS = {torch.int8: "int8", torch.uint8: "uint8", torch.int16: "int16", torch.int32: "int32"}


@contextmanager
def eager() -> Iterator[None]:
    """Within it, in this thread, no fused kernel runs."""
    token = _ON.set(False)
    try:
        yield
    finally:
        _ON.reset(token)


@cache
def _compiled() -> Any:
    """The module of compiled kernels, or None, with a warning, where it cannot be had."""
    try:
        from . import compiled as module
    except Exception as error:
        _warn(error)
        return None
    return module


_warned: list[Exception] = []


def _warn(error: Exception) -> None:
    """The process' only warning, whatever else fails later."""
    _warned.append(error)
    if len(_warned) == 1:
        warnings.warn(
            f"quantizers: fused kernels are off, quantization takes several times longer (the "
            f"results are the same): {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=4,
        )


@cache
def _kernel(source: str, target: str, mode: str, scaled: bool) -> Any:
    """The compiled kernel (kept alive here), or None."""
    module = _compiled()
    if module is None:
        return None
    try:
        return module.quantize(
            module.SOURCES.index(source),
            module.TARGETS.index(target),
            module.MODES.index(mode),
            scaled,
        )
    except Exception as error:
        _warn(error)
        return None


def available() -> bool:
    """Whether kernels can be compiled here; warns, once, where they cannot."""
    return _compiled() is not None


def serves(x: Tensor) -> bool:
    """Whether a kernel may read this tensor's memory, unseen by torch: nothing that compiles,
    traces or intercepts operations is active, and the tensor is plain.

    A TorchDispatchMode that only watches says so by an attribute `lets_kernels_pass = True`.
    """
    return (
        not torch.compiler.is_compiling()
        and _ON.get()
        and _is_plain(x)
        and (torch._C._len_torch_dispatch_stack() == 0 or _all_watch())
        and torch._C._get_tracing_state() is None
    )


def _all_watch() -> bool:
    modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    return all(getattr(mode, "lets_kernels_pass", False) for mode in modes)


def _is_plain(x: Tensor) -> bool:
    """Whether x's numbers are those in its memory, on the CPU."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and x.is_cpu
        and x.layout == torch.strided
        and not x.is_neg()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def _operand(t: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    """Whether a kernel may read t: it has what the kernel takes it to have."""
    return t is None or (t.dtype == dtype and t.shape == shape and _is_plain(t))


@lru_cache(maxsize=256)
def _constants(format: Format, overflow: Overflow | None) -> ctypes.Array[ctypes.c_float]:
    if isinstance(format, IntFormat):
        values: list[float] = [format.low, format.high]
    else:
        rule = format.on_overflow if overflow is None else overflow
        over = {"inf": math.inf, "nan": math.nan, "saturate": format.largest}[rule]
        values = [
            format.mantissa, format.min_exponent, format.largest, over,
            format.signed, format.zero, format.smallest, format.has_inf,
        ]  # fmt: skip
    return (ctypes.c_float * 8)(*values)  # no tensor: it would take torch's default device


def elements(
    x: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    block: tuple[int, ...],
    format: Format,
    rounding: Rounding,
    key: Tensor | None,
    overflow: Overflow | None = None,
) -> Tensor | None:
    """round(x / scale) + zero_point, clamped to the format: elements as a Quantizer makes them.

    x: fp16, bf16 or fp32; scale (fp32), zero_point (int32): compact, scale None for no division;
    key: 0-d int64.
    -> the format's integer dtype, or fp32 for a FloatFormat, in x's layout; None where no kernel
    serves x.
    """
    if not serves(x) or x.dtype not in _SOURCES or x.numel() == 0:
        return None
    dtype = format.dtype if isinstance(format, IntFormat) else torch.float32
    compact = compact_shape(x.shape, block)
    if not (
        _operand(scale, torch.float32, compact)
        and _operand(zero_point, torch.int32, compact)
        and _operand(key, torch.int64, ())
    ):
        return None
    result = torch.empty_like(x, dtype=dtype)
    noisy = key is not None and rounding.random_bits > 0
    path = walk(tuple(x.shape), x.stride(), result.stride(), block, noisy)
    if path is None:
        return None
    target = _TARGETS.get(dtype, "float32")
    kernel = _kernel(_SOURCES[x.dtype], target, rounding.mode, scale is not None)
    if kernel is None:
        return None
    constants = _constants(format, overflow)
    kept = [None if t is None else t.contiguous() for t in (scale, zero_point, key)]
    pointers = [0 if t is None else t.data_ptr() for t in kept]
    words = (
        *path[:4], x.data_ptr(), result.data_ptr(),
        *pointers, rounding.random_bits, ctypes.addressof(constants), *path.words,
    )  # fmt: skip
    team.run(kernel.address, words, path.size)
    return result
