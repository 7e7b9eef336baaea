"""An optimizer that still trains the model that was copied, in place of the copy."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle


def watch_optimizers(original: nn.Module, copy: nn.Module) -> None:
    """Warn, once, where an optimizer steps parameters of `original` while its copy has gradients
    and no optimizer.

    The watch looks at optimizers after they have stepped, never at the copy's forwards or
    backwards, and ends with the first step of one that trains the copy, or with the copy.
    """
    if not _HOOKS:  # one for all, that stays: none may come or go while hooks are gone through
        _HOOKS.append(register_optimizer_step_post_hook(_stepped))
    number = next(_NUMBERS)
    _WATCHES[number] = _Watch(original, copy)
    weakref.finalize(copy, _WATCHES.pop, number, None)


_HOOKS: list[RemovableHandle] = []
_NUMBERS = count()
_WATCHES: dict[int, _Watch] = {}


def _stepped(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if _WATCHES and not torch.compiler.is_compiling():
        for number, watch in list(_WATCHES.items()):
            if watch.ends_with(optimizer):
                _WATCHES.pop(number, None)


class _Watch:
    """Of one copy; it holds neither of the two models."""

    def __init__(self, original: nn.Module, copy: nn.Module) -> None:
        self._originals, self._copies = references(original), references(copy)
        self._copy = weakref.ref(copy)
        self._others: weakref.WeakSet[Optimizer] = weakref.WeakSet()

    def ends_with(self, optimizer: Optimizer) -> bool:
        """Whether all is said and seen after this optimizer's step."""
        if self._copy() is None or optimizer in self._others:
            return self._copy() is None
        if not steps(optimizer, self._originals):
            self._others.add(optimizer)
            return steps(optimizer, self._copies)
        parameters = [ref() for ref in self._copies]
        if all(p is None or p.grad is None for p in parameters):
            return False  # the copy is not trained, or not yet
        if not any_steps(self._copies):
            warnings.warn(
                f"optimizer: {type(optimizer).__name__} steps the parameters of the model that "
                f"quantize() copied, and the copy, which has gradients, is in no optimizer: "
                f"nothing trains it.  Build the optimizer from the copy's parameters, after "
                f"quantize(), or convert in place with quantize_()",
                stacklevel=4,
            )
        return True


#: parameters, not held
Parameters = Sequence[weakref.ref[Any]]


def references(model: nn.Module) -> Parameters:
    """The parameters of a model."""
    return [weakref.ref(p) for p in model.parameters()]


def steps(optimizer: Optimizer, parameters: Parameters) -> bool:
    """Whether an optimizer has any of these parameters."""
    own = {id(p) for p in (ref() for ref in parameters) if p is not None}
    return any(id(p) in own for group in optimizer.param_groups for p in group["params"])


def any_steps(parameters: Parameters) -> bool:
    """Whether any optimizer that there is has any of these parameters."""
    return any(
        issubclass(type(one), Optimizer) and steps(one, parameters) for one in gc.get_objects()
    )
