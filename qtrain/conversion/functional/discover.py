"""The calls of a model's functions, found by one forward on a copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ...copies import copied, random_state_kept
from .attach import sites_of
from .sites import CHILD

_META = torch.device("meta")


def discover_(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, run: bool = True
) -> None:
    """Make the layers of a model's calls, as its first forward with these inputs would, and learn
    which calls no gradient flows through: in place, with nothing else changed.

    The forward runs on the meta device, where nothing is computed, or, where it cannot (it looks at
    values), and where `run`, on a copy; everything in floating point asks for a gradient.
    """
    if not any(sites_of(module) for module in model.modules()):
        return
    try:
        found = _forward(_on_meta(model), _moved(args, _META), _moved(dict(kwargs), _META))
    except Exception:
        if not run:
            return
        found = _forward(copied(model), _moved(args, None), _moved(dict(kwargs), None))
    for name, twin in found.named_modules():
        known = sites_of(twin)
        if known is None:
            continue
        owner = model.get_submodule(name)
        sites = sites_of(owner)
        assert sites is not None
        sites.plain |= known.plain
        sites.taken |= known.taken
        held = twin._modules.get(CHILD)
        for layer, made in ({} if held is None else held._modules).items():
            assert made is not None
            sites.make_like(owner, layer, made)


def _forward(model: nn.Module, args: Any, kwargs: Any) -> nn.Module:
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_()
    with random_state_kept(), torch.enable_grad():
        model(*args, **kwargs)
    return model


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy whose tensors have no values."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for tensor in held.values():
                if tensor is not None and id(tensor) not in memo:
                    memo[id(tensor)] = _empty(tensor)
    return copy.deepcopy(model, memo)


def _empty(tensor: Tensor) -> Tensor:
    twin = torch.empty_like(tensor, device=_META)
    return nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin


def _moved(values: Any, device: torch.device | None) -> Any:
    def one(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        x = x.detach() if device is None else torch.empty_like(x, device=device)
        return x.requires_grad_() if x.is_floating_point() else x

    return tree_map(one, values)
