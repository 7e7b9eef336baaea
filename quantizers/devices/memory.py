"""When a tensor's numbers may be read from its memory, unseen by torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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
