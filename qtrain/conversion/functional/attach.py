"""Which modules of a model are scopes for calls of functions."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from ...layer_state import LayerState
from .. import registered
from ..joined import base_class, before
from ..kinds import is_norm_by_name
from .following import CHILD, Following
from .scope import Scope, detach_
from .sites import Sites

#: where the classes are whose forwards multiply by nothing but their children
_KNOWN = (
    "torch.nn.modules.", "torch.nn.utils.parametrize", "torch.jit.", "qtrain.layers.",
    "qtrain.norms.", "qtrain.conversion.",
)  # fmt: skip
#: what calls no function that a mode sees; a scripted module takes no Python hooks either
_CLOSED = (LayerState, torch.jit.ScriptModule)
#: torch's own modules that are not converted, and whose forwards call a function that is taken
_CALLING = (nn.Bilinear, getattr(nn, "LinearCrossEntropyLoss", nn.Bilinear))
_SITES = "_functional_sites"


def may_call(module: nn.Module) -> bool:
    """Whether a module's own forward may multiply by functions."""
    if "forward" in vars(module) or isinstance(module, _CALLING):
        return True
    return not before(base_class(module)).__module__.startswith(_KNOWN)


def follows_by_calls(module: nn.Module) -> bool:
    """Whether a module that is not converted follows its recipe in what its forward calls."""
    return may_call(module) and not is_norm_by_name(module)


def attach_(model: nn.Module, following: Following) -> None:
    """Have the calls of a model's functions follow what is asked, in place."""
    detach_(model)
    for module in model.modules():
        registered.unfollow_(module)
    if not following.are_followed:
        return  # torch's fast paths take no model with hooks
    computed = {
        id(below)
        for module in model.modules()
        if isinstance(module, ParametrizationList)
        for below in list(module.modules())[1:]
    }
    modules = [
        (name, module)
        for name, module in model.named_modules()
        if not (id(module) in computed or isinstance(module, _CLOSED) or _within_calls(name))
    ]
    if not any(may_call(module) for _, module in modules):
        return
    following.lacking = False  # under another recipe, its layers begin now
    model.register_load_state_dict_pre_hook(following.look)
    for name, module in modules:
        gap = isinstance(module, ParametrizationList)  # what computes a weight is no product of it
        gap = gap or any(isinstance(child, LayerState) for child in module.children())
        # a part that was converted by itself follows what it was given
        known = sites_of(module)
        own, path = (following, name) if known is None else (known.following, known.name)
        own.instead = following.instead
        if gap or not own.may_follow(path):
            Scope(None).attach_(module)
        elif may_call(module):
            sites = vars(module)[_SITES] = known or Sites(module, name, following)
            sites.left.clear()
            registered.follow_(module)
            Scope(sites).attach_(module)


def sites_of(module: nn.Module) -> Sites | None:
    """What is known of the calls in a module's forward."""
    found: Sites | None = vars(module).get(_SITES)
    return found


def _within_calls(name: str) -> bool:
    return CHILD in name.split(".")
