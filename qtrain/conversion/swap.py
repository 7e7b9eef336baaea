"""Classes made while converting: a quantized layer joined with a subclass of the torch layer."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ..layers.fused import QSequential, is_pair

#: what a subclass must have left to nn.Sequential: how it runs, and how it is pickled
_INHERITED = ("forward", "__reduce__", "__reduce_ex__")
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


def fuse_sequentials_(model: nn.Module) -> None:
    """Make a QSequential, in place, of every nn.Sequential in which a converted norm is followed by
    a ReLU; of objects of its subclasses too where these have no forward of their own."""
    for module in model.modules():
        if (
            isinstance(module, nn.Sequential)
            and "forward" not in vars(module)
            and all(getattr(type(module), own) is getattr(nn.Sequential, own) for own in _INHERITED)
            and any(is_pair(norm, relu) for norm, relu in pairwise(module))
        ):
            change_class_(module, QSequential, nn.Sequential)
