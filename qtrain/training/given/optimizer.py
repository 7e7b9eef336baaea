"""The optimizer of a run by a reference to a function that makes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ... import checks
from ...data.drawing import drawing_from
from . import reference

NAMES = ("sgd", "adamw")


def check(name: Any) -> None:
    """What a configuration may say of its optimizer; ValueError for anything else."""
    if not reference.is_reference(name):
        checks.choice("optimizer", name, NAMES)
        return
    reference.check("optimizer", name)
    if reference.is_given(name):
        raise ValueError(f"optimizer: got {name!r}, need {reference.NEED}, or one of sgd, adamw")


def made(model: nn.Module, config: Any) -> torch.optim.Optimizer:
    """What the function of a TrainConfig makes of (model, config); ValueError where it is no
    optimizer of this model's parameters."""
    text = config.optimizer
    function = reference.resolved("optimizer", text)
    with drawing_from(config.seed):
        found = function(model, config)
    if not isinstance(found, torch.optim.Optimizer):
        kind = type(found).__name__
        raise ValueError(f"optimizer: {text!r} returned a {kind}, need a torch.optim.Optimizer")
    own = {id(p) for p in model.parameters()}
    if any(id(p) not in own for group in found.param_groups for p in group["params"]):
        raise ValueError(
            f"optimizer: {text!r} has parameters that are not the model's; build it from those of "
            f"the model that it is called with"
        )
    for group in found.param_groups:
        checks.boolean("optimizer: constant", group.get("constant", False))
    return found
