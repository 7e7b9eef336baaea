"""Copies of models."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.utils.parametrize import is_parametrized


def copied(model: nn.Module) -> nn.Module:
    """A deep copy whose synchronised norms keep the process groups they have: a group cannot be
    copied.

    Nor can the list that a recurrent layer keeps of its weights, where these are parametrized and a
    forward has computed them: the copy makes its own.  RuntimeError for another tensor with a
    graph.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        group = vars(module).get("process_group")
        memo[id(group)] = group
        if _lists_computed_weights(module):
            memo[id(module._flat_weights)] = []
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if isinstance(tensor, FakeTensor):  # which deepcopy fails on
            memo[id(tensor)] = _cloned(tensor)
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        if _lists_computed_weights(module):
            with torch.no_grad():  # the next forward computes them anew
                module._init_flat_weights()  # type: ignore[operator]
    return twin


def _cloned(tensor: Tensor) -> Tensor:
    twin = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(twin, tensor.requires_grad)
    return twin.requires_grad_(tensor.requires_grad)


def _lists_computed_weights(module: nn.Module) -> bool:
    return isinstance(module, nn.RNNBase) and is_parametrized(module)
