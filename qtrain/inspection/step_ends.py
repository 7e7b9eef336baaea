"""When a training step ends: told by the optimizers that train a model."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from ..autograd.capture import capturing
from ..autograd.recomputation import in_backward


class StepEnds:
    """Which updates of a model end a training step.

    One optimizer's all do.  Of several that take turns the first one's does, and the others join
    it; one that comes later joins the step that has just ended, with its first update.  An update
    within a backward pass ends none: the step is not over.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        #: of each optimizer: how many steps had ended after its last update
        self._seen: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()

    def ended_by(self, optimizer: Optimizer, ended: int) -> bool:
        """Whether this update ends a step, after `ended` others.

        ValueError for one that a CUDA graph captures.
        """
        if in_backward() or not (optimizer in self._seen or self._trains(optimizer)):
            return False
        if capturing():
            raise ValueError(
                "Monitor: the optimizer's step is captured in a CUDA graph, whose replays it does "
                "not see; close() it before the capture"
            )
        ends = self._seen.get(optimizer) == ended or not self._seen
        self._seen[optimizer] = ended + ends
        return ends

    def _trains(self, optimizer: Optimizer) -> bool:
        own = {id(parameter) for parameter in self._model.parameters()}
        return any(id(p) in own for group in optimizer.param_groups for p in group["params"])


def listen(stepped: Callable[[Optimizer], None]) -> RemovableHandle:
    """Call a method after every update of any model, for as long as somebody else holds its
    object."""
    reference = weakref.WeakMethod(stepped)

    def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        found = reference()
        if found is not None:
            found(optimizer)

    return register_optimizer_step_post_hook(hook)
