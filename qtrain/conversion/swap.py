"""Classes made while converting: a quantized layer joined with a subclass of the torch layer."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

_MADE: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def change_class_(module: nn.Module, quantized: type[nn.Module], plain: type[nn.Module]) -> None:
    """Give a `plain` layer, or an object of a subclass of it, the forward of `quantized`, in place.

    A subclass stays in the line.  The class that torch makes for a parametrized module, which holds
    its properties, is made again on top, so that remove_parametrizations finds what it expects.
    """
    own = type(module)
    base = own.__bases__[0] if is_parametrized(module) else own
    target = quantized if base is plain else joined(quantized, base)
    if base is not own:
        held = {k: v for k, v in vars(own).items() if k not in ("__dict__", "__weakref__")}
        target = type(f"Parametrized{target.__name__}", (target,), held)
    module.__class__ = target


def joined(quantized: type[nn.Module], own: type[nn.Module]) -> type[nn.Module]:
    """The subclass of both, always the same one; its objects pickle by way of the two."""
    if (quantized, own) not in _MADE:
        name = f"Q{own.__name__}"
        _MADE[quantized, own] = type(name, (quantized, own), {"__reduce_ex__": _reduce})
    return _MADE[quantized, own]


def _reduce(module: nn.Module, protocol: Any) -> Any:
    state = nn.Module.__reduce_ex__(module, protocol)[2]
    return _blank, type(module).__bases__, state


def _blank(quantized: type[nn.Module], own: type[nn.Module]) -> nn.Module:
    cls = joined(quantized, own)
    return cls.__new__(cls)
