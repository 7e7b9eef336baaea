"""Parameters of quantizers that no optimizer trains, because it was built before they were made."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from ..names import some
from ..products.module import products_of
from .stale_optimizer import Parameters, any_steps, references, steps


def watch_learned(model: nn.Module) -> None:
    """Have an optimizer that trains the model refuse its step, ValueError, where what quantizers
    of the model learn has gradients and no optimizer.  Again after a change of recipe; the watch
    ends once every such parameter has an optimizer, or with the model."""
    if not any(product.recipe.learned for product in products_of(model)):
        _WATCHES.pop(model, None)
        return
    if not _HOOKS:  # one for all, that stays: none may come or go while hooks are gone through
        _HOOKS.append(register_optimizer_step_pre_hook(_stepping))
    _WATCHES[model] = _Watch(model)


_HOOKS: list[RemovableHandle] = []
_WATCHES: weakref.WeakKeyDictionary[nn.Module, _Watch] = weakref.WeakKeyDictionary()


def _stepping(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if _WATCHES and not torch.compiler.is_compiling():
        for model, watch in list(_WATCHES.items()):
            if watch.ends_with(optimizer):
                _WATCHES.pop(model, None)


class _Watch:
    """Of one model, which it does not hold."""

    def __init__(self, model: nn.Module) -> None:
        learned = {
            id(parameter): (f"{product.name}: {' '.join(slot)} {name}", weakref.ref(parameter))
            for product in products_of(model)
            for slot in product.recipe.learned
            for name, parameter in product.learned(slot).items()
        }
        self._learned = list(learned.values())
        self._others: Parameters = [p for p in references(model) if id(p()) not in learned]

    def ends_with(self, optimizer: Optimizer) -> bool:
        """Whether all of them have an optimizer, as this one is about to step."""
        self._learned = [
            (name, ref)
            for name, ref in self._learned
            if ref() is not None and not steps(optimizer, [ref])
        ]
        graded = [(n, ref) for n, ref in self._learned if getattr(ref(), "grad", None) is not None]
        if graded and steps(optimizer, self._others):
            lost = [name for name, ref in graded if not any_steps([ref])]
            if lost:
                raise ValueError(
                    f"optimizer: {type(optimizer).__name__} trains the model, and nothing trains "
                    f"what its quantizers learn: {some(lost, 4)}; build the optimizer from "
                    f"model.parameters() after quantize() or set_recipe(), or add them with "
                    f"add_param_group"
                )
        return not self._learned
