"""An optimizer that still trains the model that was copied, in place of the copy."""

from __future__ import annotations

import gc
import warnings
import weakref
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

#: those that still watch; torch's table of hooks must not change while an optimizer walks it
_WATCHES: set[_Watch] = set()


@cache
def _listen() -> None:
    register_optimizer_step_post_hook(_stepped)


def _stepped(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if not torch.compiler.is_compiling():
        for watch in list(_WATCHES):
            if watch.ended_by(optimizer):
                _WATCHES.discard(watch)


def watch_optimizers(original: nn.Module, copy: nn.Module) -> None:
    """Warn, once, where an optimizer steps parameters of `original` while its copy has gradients
    and no optimizer.

    The watch looks at optimizers after they have stepped, never at the copy's forwards or
    backwards, and ends with the first step of one that trains the copy, or with the copy.
    """
    watch = _Watch(original, copy)
    _WATCHES.add(watch)
    weakref.finalize(copy, _WATCHES.discard, watch)
    _listen()


class _Watch:
    def __init__(self, original: nn.Module, copy: nn.Module) -> None:
        self._originals = {id(p): weakref.ref(p) for p in original.parameters()}
        self._copies = [weakref.ref(p) for p in copy.parameters()]
        self._copy = weakref.ref(copy)
        self._others: weakref.WeakSet[Optimizer] = weakref.WeakSet()

    def ended_by(self, optimizer: Optimizer) -> bool:
        """Whether there is nothing left to watch for after this step."""
        copy = self._copy()
        if copy is None or optimizer in self._others:
            return copy is None
        if not self._steps_originals(optimizer):
            self._others.add(optimizer)
            return _trains(optimizer, copy)
        parameters = [ref() for ref in self._copies]
        if all(p is None or p.grad is None for p in parameters):
            return False  # the copy is not trained, or not yet
        if not any(
            issubclass(type(one), Optimizer) and _trains(one, copy) for one in gc.get_objects()
        ):
            warnings.warn(
                f"optimizer: {type(optimizer).__name__} steps the parameters of the model that "
                f"quantize() copied, and the copy, which has gradients, is in no optimizer: "
                f"nothing trains it.  Build the optimizer from the copy's parameters, after "
                f"quantize(), or convert in place with quantize_()",
                stacklevel=4,
            )
        return True

    def _steps_originals(self, optimizer: Optimizer) -> bool:
        return any(
            id(p) in self._originals and self._originals[id(p)]() is p
            for group in optimizer.param_groups
            for p in group["params"]
        )


def _trains(optimizer: Optimizer, model: nn.Module) -> bool:
    own = {id(p) for p in model.parameters()}
    return any(id(p) in own for group in optimizer.param_groups for p in group["params"])
