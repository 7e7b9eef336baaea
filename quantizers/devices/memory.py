"""When a tensor's numbers may be read from its memory, unseen by torch; memory for results."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
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
_PLAIN = (Tensor, torch.nn.Parameter)


@contextmanager
def eager() -> Iterator[None]:
    """Within it, in this thread, no fused kernel runs."""
    token = _ON.set(False)
    try:
        yield
    finally:
        _ON.reset(token)


def serves(*tensors: Tensor, on: str = "cpu") -> bool:
    """Whether a kernel may read these tensors' memory, unseen by torch: nothing that compiles,
    traces or intercepts operations is active, and each tensor's numbers are those in its memory, on
    a device of this type.

    A TorchDispatchMode that only watches says so by an attribute `lets_kernels_pass = True`.
    """
    if (
        torch.compiler.is_compiling()
        or not _ON.get()
        or (_modes() and not _all_watch())
        or _tracing_state() is not None
    ):
        return False
    for x in tensors:
        if (
            type(x) not in _PLAIN
            or not (x.is_cpu if on == "cpu" else x.is_cuda if on == "cuda" else x.device.type == on)
            or x.layout is not torch.strided
            or x.is_neg()
            or _is_transformed(x)
            or not _has_storage(x)  # batched gradients (is_grads_batched) have none
        ):
            return False
    return True


def _all_watch() -> bool:
    modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    return all(getattr(mode, "lets_kernels_pass", False) for mode in modes)


#: bytes from which glibc asks the system for memory each time, and gives it back (malloc(3):
#: DEFAULT_MMAP_THRESHOLD_MAX), in pages of 4 KiB whose first touch takes longer than most kernels
_LARGE = 1 << 25


def fresh(
    shape: Sequence[int], strides: Sequence[int] | None, dtype: torch.dtype, like: Tensor
) -> Tensor:
    """Memory for what a kernel makes of `like`, on its device; in C order without strides.

    Much of it lies in large pages, where Linux has them for those that ask (madvise(2)).
    """
    if strides is None:
        made = like.new_empty(shape, dtype=dtype)
    else:  # takes two thirds of the time of empty
        made = torch.empty_strided(shape, strides, dtype=dtype, device=like.device)
    if torch.compiler.is_compiling():
        return made
    size = made.numel() * made.element_size()
    if size >= _LARGE and serves(made) and _madvise() is not None:
        start = -(-made.data_ptr() // 4096) * 4096
        _madvise()(start, made.data_ptr() + size - start, _HUGEPAGE)
    return made


#: MADV_HUGEPAGE of Linux
_HUGEPAGE = 14


@cache
def _madvise() -> Any:
    """madvise, or None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    found = getattr(ctypes.CDLL(None), "madvise", None)
    if found is not None:
        found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return found
