"""Copies of models, and running a model without leaving a trace."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

from . import checks


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


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave Python's, NumPy's and torch's random state as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    torch_cpu = torch.get_rng_state()
    devices = range(torch.cuda.device_count())
    on_devices = [torch.cuda.get_rng_state(device) for device in devices]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_cpu)
        for device, state in zip(devices, on_devices, strict=True):
            torch.cuda.set_rng_state(state, device)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, DataParallel or torch.compile."""
    checks.module(model)
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, nn.parallel.DistributedDataParallel | nn.DataParallel
        ):
            inner = model.module
        if inner is None:
            return model
        model = inner


def take_hooks_off(module: nn.Module, are_taken: Callable[[Any], bool]) -> bool:
    """Take off a module's forward the hooks that are methods of such an object (None: functions);
    whether there was one."""
    found = False
    for table in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(table.items()):
            if are_taken(getattr(hook, "__self__", None)):
                del table[key]
                found = True
                for kind in (
                    module._forward_hooks_always_called,
                    module._forward_hooks_with_kwargs,
                    module._forward_pre_hooks_with_kwargs,
                ):
                    kind.pop(key, None)
    return found


def detached(value: Any, pairs: list[tuple[Tensor, Tensor]] | None = None) -> Any:
    """The same nested tuples, lists, dicts and dataclasses with every tensor cut from its graph.

    A tensor that asks for a gradient still does: its own.  pairs: gets (tensor, its cut copy).
    """
    if isinstance(value, Tensor):
        cut = value.detach().requires_grad_(value.requires_grad)
        if pairs is not None:
            pairs.append((value, cut))
        return cut
    if isinstance(value, dict):
        found = copy.copy(value)  # a subclass, such as a model's output class, stays what it is
        for key in value:
            found[key] = detached(value[key], pairs)
        return found
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(detached(entry, pairs) for entry in value))
    if isinstance(value, tuple | list):
        return type(value)(detached(entry, pairs) for entry in value)
    if is_dataclass(value) and not isinstance(value, type):
        named = {f.name: detached(getattr(value, f.name), pairs) for f in fields(value) if f.init}
        return replace(value, **named)
    return value


class _Moved(TorchFunctionMode):
    """Within it, copy.deepcopy makes copies of tensors without a graph, on a device."""

    def __init__(self, device: torch.device | None) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        own = tensor.detach()
        twin = own.clone() if self.device is None else torch.empty_like(own, device=self.device)
        memo[id(tensor)] = twin.requires_grad_(tensor.requires_grad)
        return twin


def moved(values: Any, device: torch.device | None = None) -> Any:
    """A deep copy of what a model is called with: its tensors without a graph, on `device` without
    values; None: where they are, with them."""
    with torch.inference_mode(False), _Moved(device):  # in which a copy would have no version
        return copy.deepcopy(values)


def aside(values: Any) -> Any:
    """What a model is called with in a pass that nobody is to see: `moved`, so that what a forward
    writes to, as a cache, is a copy; `detached` where something cannot be copied."""
    try:
        return moved(values)
    except Exception:
        return detached(values)
