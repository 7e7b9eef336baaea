"""The calls of a model's functions, found by one forward on a copy."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...copies import aside, copied, moved, random_state_kept, take_hooks_off
from .attach import sites_of
from .following import CHILD
from .scope import is_scope

_META = torch.device("meta")


def discover_(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    prepare: Callable[[nn.Module], object],
    *,
    strict: bool = True,
) -> None:
    """Make the layers of a model's calls, as its first forward with these inputs would, and learn
    which calls no gradient flows through: in place, with nothing else changed.

    The forward runs on the meta device, where nothing is computed, or, where it cannot (it looks at
    values), on a copy; everything in floating point asks for a gradient, the inputs too where it
    can run so.  What it writes to, as a cache, is a copy, if it can be copied.
    prepare: takes off a copy what its first forward would set off.  strict: an error where it
    cannot run; else nothing is learned, nor where ranks would have to run a copy together.
    """
    if not (args or kwargs) or not any(sites_of(module) for module in model.modules()):
        return

    def forward(device: torch.device | None, asking: bool) -> nn.Module:
        copy = copied(model) if device is None else _on_meta(model)
        prepare(copy)
        for parameter in copy.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_()
        given, named = _moved((args, dict(kwargs)), device, asking)
        with _open(copy), random_state_kept(), torch.enable_grad():
            copy(*given, **named)
        return copy

    for device, asking in itertools.product((_META, None), (True, False)):
        if device is None and not strict and dist.is_available() and dist.is_initialized():
            return
        try:
            with torch.inference_mode(False):  # in which nothing asks for a gradient
                found = forward(device, asking)
            break
        except Exception:
            if device is None and not asking:
                if strict:
                    raise
                return
    with _open(model):
        for name, twin in found.named_modules():
            _adopt_(model.get_submodule(name), twin)


def _adopt_(owner: nn.Module, twin: nn.Module) -> None:
    """What is known of the calls of a module's copy."""
    sites, known = sites_of(owner), sites_of(twin)
    if sites is None or known is None:
        return
    sites.plain |= known.plain
    sites.taken |= known.taken
    sites.following.left |= known.following.left
    held = twin._modules.get(CHILD)
    for layer, made in ({} if held is None else held._modules).items():
        assert made is not None
        sites.make_like(owner, layer, made)


@contextmanager
def _open(model: nn.Module) -> Iterator[None]:
    """Within it, layers whose quantizers learn may be made."""
    every = [sites for module in model.modules() if (sites := sites_of(module)) is not None]
    with ExitStack() as opened:
        for sites in every:
            opened.enter_context(sites.following.opened())
        yield


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy whose tensors have no values."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for tensor in held.values():
                if tensor is not None and id(tensor) not in memo:
                    memo[id(tensor)] = _empty(tensor)
    twin = copy.deepcopy(model, memo)
    only_scopes_(twin)  # the model's own hooks have not been asked
    return twin


def only_scopes_(model: nn.Module) -> None:
    """Take every hook but scopes off a model's forwards."""
    for module in model.modules():
        take_hooks_off(module, lambda one: not is_scope(one))


def _empty(tensor: Tensor) -> Tensor:
    twin = torch.empty_like(tensor, device=_META)
    return nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin


def _moved(values: Any, device: torch.device | None, asking: bool) -> Any:
    found = aside(values) if device is None else moved(values, device)
    for x in tree_leaves(found) if asking else ():
        if isinstance(x, Tensor) and x.is_floating_point():
            x.requires_grad_()
    return found
