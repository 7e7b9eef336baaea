"""What a norm of no torch class is, found out once for each class and settings."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .calls import calls, function_of
from .form import Called, Found
from .forms import form
from .probe import own_tensors, settings

_PLAIN = bool, int, float, str, type(None)
_FOUND: weakref.WeakKeyDictionary[type[nn.Module], dict[Hashable, Found]]
_FOUND = weakref.WeakKeyDictionary()


def recognised(module: nn.Module) -> Found:
    """What a module is as a norm, or why it is none that can be converted.

    Nothing of the module is changed: a replica of it is run on small inputs on the CPU.  The answer
    is remembered for modules of the same class, settings and sizes.
    """
    key = _key(module)
    if key is None:
        return _found(module)
    known = _FOUND.setdefault(type(module), {})
    if key not in known:
        known[key] = _found(module)
    return known[key]


def _found(module: nn.Module) -> Found:
    if is_parametrized(module):
        return "it is parametrized"
    if function_of(module) is None:
        return form(module)
    called = calls(module)
    if isinstance(called, Called):
        return called
    written = form(module)
    return called if isinstance(written, str) else written


def _key(module: nn.Module) -> Hashable | None:
    """All that its forward may depend on; None where that is not plain."""
    own = sorted(settings(module).items())
    if not all(_is_plain(value) for _, value in own):
        return None
    children = [(k, repr(child)) for k, child in module._modules.items() if k != "state"]
    tensors = [(name, tuple(t.shape)) for name, t in own_tensors(module).items()]
    typed = [(name, type(value), value) for name, value in own]
    return type(module).forward, *typed, *children, *tensors


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
