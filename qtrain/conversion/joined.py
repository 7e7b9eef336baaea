"""Classes made of others, so that an object changes what it does and stays what it was."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

_MADE: dict[tuple[type[nn.Module], ...], type[nn.Module]] = {}


def joined(own: type[nn.Module], *bases: type[nn.Module]) -> type[nn.Module]:
    """The subclass of these, `own` among them, always the same one; its objects pickle by way of
    them."""
    if bases not in _MADE:
        members = {"__reduce_ex__": _reduce, "_before": own}
        _MADE[bases] = type(f"Q{own.__name__}", bases, members)
    return _MADE[bases]


def before(cls: type[nn.Module]) -> type[nn.Module]:
    """The class that a joined one was made for; another one itself."""
    own: type[nn.Module] = vars(cls).get("_before", cls)
    return own


def base_class(module: nn.Module) -> type[nn.Module]:
    """A module's class without the one that torch makes for a parametrized module, which holds its
    properties."""
    own = type(module)
    return own.__bases__[0] if is_parametrized(module) else own


def set_class_(module: nn.Module, cls: type[nn.Module]) -> None:
    """Change `base_class` in place.  What torch made for a parametrized module is made again on
    top, so that remove_parametrizations finds what it expects."""
    own = type(module)
    if own is not base_class(module):
        held = {k: v for k, v in vars(own).items() if k not in ("__dict__", "__weakref__")}
        cls = type(f"Parametrized{cls.__name__}", (cls,), held)
    module.__class__ = cls


def _reduce(module: nn.Module, protocol: Any) -> Any:
    state = nn.Module.__reduce_ex__(module, protocol)[2]
    return _blank, (before(type(module)), *type(module).__bases__), state


def _blank(own: type[nn.Module], *bases: type[nn.Module]) -> nn.Module:
    cls = joined(own, *bases)
    return cls.__new__(cls)
