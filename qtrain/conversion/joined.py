"""Classes made of others, so that an object changes what it does and stays what it was."""

from __future__ import annotations

from typing import Any

from torch import nn

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


def _reduce(module: nn.Module, protocol: Any) -> Any:
    state = nn.Module.__reduce_ex__(module, protocol)[2]
    return _blank, (before(type(module)), *type(module).__bases__), state


def _blank(own: type[nn.Module], *bases: type[nn.Module]) -> nn.Module:
    cls = joined(own, *bases)
    return cls.__new__(cls)
