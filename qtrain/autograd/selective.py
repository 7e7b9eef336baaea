"""What selective activation checkpointing sees of a layer: its floating-point products.

torch's two modes keep the results of the operations that a policy names, by their number among
their kind.  So the recomputation must run the operations of the forward, no others, and nothing may
be written into a kept result.  A quantized layer counts forwards, draws noise, updates ranges and
finishes products in place; these the modes do not see, nor the integer units: they are computed
again.  A product in floating point (fp32 units on codes included) is theirs to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar, cast

import torch
import torch.utils.checkpoint as checkpointing
from torch import Tensor
from torch.utils import _python_dispatch as modes

Function = TypeVar("Function", bound=Callable[..., Any])

_KEEPERS = checkpointing._CachingTorchDispatchMode, checkpointing._CachedTorchDispatchMode
#: how many modes intercept torch's operations
torch_modes = torch._C._len_torch_dispatch_stack
_NOTHING = nullcontext()
#: the whole stack of modes around the layer, outermost first, while it is hidden from some
_AROUND: ContextVar[tuple[Any, ...]] = ContextVar("modes around a layer", default=())


def hidden() -> AbstractContextManager[Any]:
    """Within it, the modes of selective checkpointing see nothing; other modes see everything."""
    if torch.compiler.is_compiling() or not torch_modes():
        return _NOTHING
    around = tuple(modes._get_current_dispatch_mode_stack())
    if not any(isinstance(mode, _KEEPERS) for mode in around):
        return _NOTHING
    return _hidden(around)


@contextmanager
def _hidden(around: tuple[Any, ...]) -> Iterator[None]:
    token = _AROUND.set(around)
    try:
        with _stack([mode for mode in around if not isinstance(mode, _KEEPERS)]):
            yield
    finally:
        _AROUND.reset(token)


@contextmanager
def _stack(wanted: list[Any]) -> Iterator[None]:
    """Another stack of modes."""
    found = [modes._pop_mode() for _ in range(torch_modes())]
    for mode in wanted:
        modes._push_mode(mode)
    try:
        yield
    finally:
        for _ in wanted:
            modes._pop_mode()
        for mode in reversed(found):
            modes._push_mode(mode)


@contextmanager
def without(unwanted: Callable[[object], bool]) -> Iterator[None]:
    """Without some modes, for what is `shown` too."""
    token = _AROUND.set(tuple(mode for mode in _AROUND.get() if not unwanted(mode)))
    around = modes._get_current_dispatch_mode_stack()
    try:
        with _stack([mode for mode in around if not unwanted(mode)]):
            yield
    finally:
        _AROUND.reset(token)


def unseen(function: Function) -> Function:
    """The function, run `hidden`."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with hidden():
            return function(*args, **kwargs)

    return cast(Function, run)


def shown(product: Callable[..., Tensor], *operands: Any) -> Tensor:
    """product(*operands) as the modes around a hidden layer see it; the result may be written
    into."""
    around = () if torch.compiler.is_compiling() else _AROUND.get()
    if not around:
        return product(*operands)
    with _stack(list(around)):
        result = product(*operands)
    return result.clone()
