"""When kernels run, and how they are had."""

from __future__ import annotations

import ctypes
import importlib
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

_ON: ContextVar[bool] = ContextVar("fused quantizers", default=True)
#: numbers of dtypes and rounding modes in the compiled module's SOURCES, TARGETS and MODES
SOURCES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
TARGETS = {torch.float32: 0, torch.int8: 1, torch.uint8: 2, torch.int16: 3, torch.int32: 4}
MODES = {
    mode: number
    for number, mode in enumerate(
        ("nearest_even", "toward_zero", "floor", "ceil", "half_away", "stochastic")
    )
}


@contextmanager
def eager() -> Iterator[None]:
    """Within it, in this thread, no fused kernel runs."""
    token = _ON.set(False)
    try:
        yield
    finally:
        _ON.reset(token)


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
def made(module: str, name: str, *numbers: int) -> Any:
    """The kernel that `name` of a module of compiled kernels makes for these numbers, kept alive
    here; None, with a warning, where it cannot be had."""
    try:
        return getattr(importlib.import_module(module), name)(*numbers)
    except Exception as error:
        _warn(error)
        return None


def serves(x: Tensor) -> bool:
    """Whether a kernel may read this tensor's memory, unseen by torch: nothing that compiles,
    traces or intercepts operations is active, and the tensor is plain.

    A TorchDispatchMode that only watches says so by an attribute `lets_kernels_pass = True`.
    """
    return (
        not torch.compiler.is_compiling()
        and _ON.get()
        and is_plain(x)
        and (torch._C._len_torch_dispatch_stack() == 0 or _all_watch())
        and torch._C._get_tracing_state() is None
    )


def _all_watch() -> bool:
    modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    return all(getattr(mode, "lets_kernels_pass", False) for mode in modes)


def is_plain(x: Tensor) -> bool:
    """Whether x's numbers are those in its memory, on the CPU."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and x.is_cpu
        and x.layout == torch.strided
        and not x.is_neg()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and torch._C._has_storage(x)  # batched gradients (is_grads_batched) have none
    )


def number(x: Tensor) -> int | None:
    """The value of a 0-d int64 tensor that lies in this process' memory, or None."""
    if not serves(x) or x.dim() or x.dtype != torch.int64:
        return None
    return ctypes.c_int64.from_address(x.data_ptr()).value


def is_dense(x: Tensor) -> bool:
    """Whether x's elements fill a run of memory, in any order."""
    return torch.ops.aten.is_non_overlapping_and_dense(x)  # type: ignore[no-any-return]


def operand(t: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    """Whether a kernel may read t: it has what the kernel takes it to have."""
    return t is None or (t.dtype == dtype and t.shape == shape and is_plain(t))


@lru_cache(maxsize=256)
def constants(
    format: Format, overflow: Overflow | None, momentum: float = 0.0
) -> ctypes.Array[ctypes.c_float]:
    """What a kernel knows of a format: 8 numbers for elements, then its largest, momentum."""
    if isinstance(format, IntFormat):
        values: list[float] = [format.low, format.high]
    else:
        rule = format.on_overflow if overflow is None else overflow
        over = {"inf": math.inf, "nan": math.nan, "saturate": format.largest}[rule]
        values = [
            format.mantissa, format.min_exponent, format.largest, over,
            format.signed, format.zero, format.smallest, format.has_inf,
        ]  # fmt: skip
    values += [0.0] * (8 - len(values)) + [format.largest, momentum]
    return (ctypes.c_float * 10)(*values)  # no tensor: it would take torch's default device
