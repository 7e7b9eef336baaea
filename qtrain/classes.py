"""Classes made while converting: a quantized layer joined with a subclass of the torch layer."""

from __future__ import annotations

from typing import Any

from torch import nn

_MADE: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


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
