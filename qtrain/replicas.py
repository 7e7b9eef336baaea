"""Copies of a model and its optimizer, to train on aside."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from . import checks

#: What torch itself keeps on an optimizer that a copy makes anew: hooks, and what wraps `step`.
_TORCHS = {
    "step", "_step_count", "_opt_called", "_zero_grad_profile_name", "_patch_step_function",
    "_warned_capturable_if_run_uncaptured", "_need_device_dtype_check_for_fused",
}  # fmt: skip


def replica(
    model: nn.Module, optimizer: Optimizer, make: Callable[[nn.Module], nn.Module]
) -> tuple[nn.Module, Optimizer]:
    """(make(model), the optimizer of its parameters), in the state of the two: momenta, settings of
    each group, gradients that are there.

    make     returns a copy of the model with the same parameters, in the same order

    Raises ValueError for an optimizer that cannot be copied.
    """
    twin = make(model)
    for old, new in zip(model.parameters(), twin.parameters(), strict=True):
        new.grad = None if old.grad is None else old.grad.clone()
    return twin, copied_optimizer(optimizer, model.parameters(), twin.parameters())


def copied_optimizer(
    optimizer: Optimizer, old: Iterable[nn.Parameter], new: Iterable[nn.Parameter]
) -> Optimizer:
    """A copy that trains the `new` parameters in place of the `old`, in the optimizer's state.

    Raises ValueError for an optimizer that cannot be copied: one that trains other tensors than
    `old`, has step hooks, or keeps something of its own that cannot be copied.
    """
    checks.optimizer(optimizer)
    memo: dict[int, Any] = {id(one): other for one, other in zip(old, new, strict=True)}
    kind = type(optimizer).__name__
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if id(parameter) not in memo:
                raise ValueError(
                    f"optimizer: group {number} of {kind} trains a tensor of shape "
                    f"{tuple(parameter.shape)} that is no parameter of the model; build it from "
                    f"model.parameters(), or pass a module that holds all that is trained"
                )
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise ValueError(
            f"optimizer: {kind} has step hooks (as CorrectedSteps and NormSchedule put on it), "
            f"which may hold on to the original and cannot be copied; do their work in `step`"
        )
    try:
        own = copy.deepcopy(optimizer, memo)
        for name, value in vars(optimizer).items():
            if name not in vars(own) and name not in _TORCHS:
                vars(own)[name] = copy.deepcopy(value, memo)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(f"optimizer: this {kind} cannot be copied ({error})") from error
    return own
