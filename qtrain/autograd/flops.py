"""What torch's FlopCounterMode sees of a product: one operation of torch's, whatever serves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils import _python_dispatch as modes
from torch.utils.flop_counter import FlopCounterMode

from .selective import torch_modes, without

_NOTHING = nullcontext()


def counted(
    product: Callable[..., Any], kind: str, a: Sequence[int], b: Sequence[int], like: Tensor
) -> AbstractContextManager[Any]:
    """Around a product's computation: a FlopCounterMode that is on sees nothing of it, and counts
    `product` (see `Operation.product`) of operands of these shapes instead, on the meta device."""
    if torch.compiler.is_compiling() or not torch_modes():
        return _NOTHING
    if not any(map(_counts, modes._get_current_dispatch_mode_stack())):
        return _NOTHING
    product(kind, *[torch.empty(tuple(shape), device="meta") for shape in (a, b, like.shape)])
    return without(_counts)


def _counts(mode: object) -> bool:
    return isinstance(mode, FlopCounterMode) or isinstance(
        getattr(mode, "counter", None), FlopCounterMode
    )
