"""When kernels run, and how they are had."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
import torch.utils._python_dispatch
from torch import Tensor

_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state
_is_transformed = torch._C._functorch.is_functorch_wrapped_tensor
_has_storage = torch._C._has_storage

_ON: ContextVar[bool] = ContextVar("fused quantizers", default=True)
#: how kernels number dtypes and rounding modes
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


_PLAIN = (Tensor, torch.nn.Parameter)
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
        and (_modes() == 0 or _all_watch())
        and _tracing_state() is None
    )


def _all_watch() -> bool:
    modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    return all(getattr(mode, "lets_kernels_pass", False) for mode in modes)


def is_plain(x: Tensor) -> bool:
    """Whether x's numbers are those in its memory, on the CPU."""
    return (
        type(x) in _PLAIN
        and x.is_cpu
        and x.layout is torch.strided
        and not x.is_neg()
        and not _is_transformed(x)
        and _has_storage(x)  # batched gradients (is_grads_batched) have none
    )


def number(x: Tensor) -> int | None:
    """The value of a 0-d int64 tensor that lies in this process' memory, or None."""
    if x.dtype is not torch.int64 or x.dim() or not serves(x):
        return None
    return int(x.item())


def is_dense(x: Tensor) -> bool:
    """Whether x's elements fill a run of memory, in any order."""
    return torch.ops.aten.is_non_overlapping_and_dense(x)  # type: ignore[no-any-return]


def operand(t: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    """Whether a kernel may read t: it has what the kernel takes it to have."""
    return t.dtype is dtype and t.shape == shape and is_plain(t)
