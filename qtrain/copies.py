"""Copies of models."""

from __future__ import annotations

import copy

from torch import nn


def copied(model: nn.Module) -> nn.Module:
    """A deep copy whose synchronised norms keep the process groups they have: a group cannot be
    copied."""
    groups = [vars(module).get("process_group") for module in model.modules()]
    return copy.deepcopy(model, {id(group): group for group in groups})
