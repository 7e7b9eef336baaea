"""What autocast asks for, and contexts that are entered only where they change something."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_NOTHING = nullcontext()


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype autocast asks for on x's device, or None outside it and for fp64, as torch's."""
    kind = x.device.type
    if x.dtype == torch.float64 or kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """What runs within it takes the dtypes it is given; entered only where autocast is on."""
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return _NOTHING


class _WithoutGrad:
    """torch.no_grad() where gradients are on, in a third of its time."""

    def __enter__(self) -> None:
        torch._C._set_grad_enabled(False)

    def __exit__(self, *exception: object) -> None:
        torch._C._set_grad_enabled(True)


_WITHOUT_GRAD = _WithoutGrad()


def without_grad() -> AbstractContextManager[Any]:
    """torch.no_grad(), entered only where gradients are on."""
    if not torch.is_grad_enabled():
        return _NOTHING
    return torch.no_grad() if torch.compiler.is_compiling() else _WITHOUT_GRAD
