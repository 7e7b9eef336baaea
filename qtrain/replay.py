"""replay: the same steps of a training again and again, each time from the same state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from . import checks
from .aside import unwrapped
from .replicas import copied_optimizer
from .step_function import StepFunction, Watch, loss_of


def not_finite(losses: Sequence[float]) -> bool:
    """Whether the last loss is NaN or infinite."""
    return not math.isfinite(losses[-1])


def replay(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: StepFunction,
    batches: Iterable[Any],
    *,
    diverged: Callable[[Sequence[float]], bool] = not_finite,
) -> Callable[[nn.Module], bool]:
    """A function of a copy of the model: does training it on these batches diverge?  For `bisect`.

    optimizer   of the model's parameters, with the state that it has now, as the model
    step        one step on (model, optimizer, batch), backward and optimizer.step() included; it
                returns the loss, and uses what it is given alone
    batches     of the steps in question; they are kept in memory
    diverged    is asked after every step, with the losses so far, the newest last

    Each call trains with a copy of the optimizer, whose parameters are those of the model it is
    given.  ValueError for an optimizer that cannot be copied (see `replicas`), for no batches, and,
    when called, for a step that returns no number, or changes its batch or what replay was given.
    """
    model = unwrapped(model)
    checks.function("step", step, "a function of (model, optimizer, batch)", None, None, None)
    checks.function("diverged", diverged, "a function of the losses so far", [0.0])
    kept = list(checks.iterable("batches", batches, "batches, a list of one a step"))
    if not kept:
        raise ValueError("batches: got none; give those of the steps that diverge")
    own = list(model.parameters())
    start = copied_optimizer(optimizer, own, own)  # later steps do not move it

    def diverges(twin: nn.Module) -> bool:
        theirs = list(twin.parameters())
        if [p.shape for p in theirs] != [p.shape for p in own]:
            raise ValueError("model: it is no copy of the model that replay was given")
        twins = copied_optimizer(start, own, theirs)
        losses: list[float] = []
        for batch in kept:
            watch = Watch(model, optimizer, batch)
            losses.append(loss_of(step(twin, twins, batch)))
            watch.check()
            if diverged(losses):
                return True
        return False

    return diverges
