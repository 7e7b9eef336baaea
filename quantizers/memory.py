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


def serves(*tensors: Tensor, device_type: str = "cpu") -> bool:
    """Whether a kernel may read these tensors' memory, unseen by torch: nothing that compiles,
    traces or intercepts operations is active, and each tensor is plain.

    A TorchDispatchMode that only watches says so by an attribute `lets_kernels_pass = True`.
    """
    return (
        not torch.compiler.is_compiling()
        and _ON.get()
        and is_plain(*tensors, device_type=device_type)
        and (_modes() == 0 or _all_watch())
        and _tracing_state() is None
    )


def _all_watch() -> bool:
    modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    return all(getattr(mode, "lets_kernels_pass", False) for mode in modes)


def is_plain(*tensors: Tensor, device_type: str = "cpu") -> bool:
    """Whether the numbers of each are those in its memory, on such a device."""
    for x in tensors:
        if (
            type(x) not in _PLAIN
            or x.device.type != device_type
            or x.layout is not torch.strided
            or x.is_neg()
            or _is_transformed(x)
            or not _has_storage(x)  # batched gradients (is_grads_batched) have none
        ):
            return False
    return True
