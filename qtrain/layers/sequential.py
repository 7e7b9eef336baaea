"""nn.Sequential with fused norms: `qtrain.fused` where norm, ReLU and layer follow one another."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import nn

from ..conversion.swap import change_class_
from .fused import is_pair, norm_relu_before

#: what a subclass must have left to nn.Sequential: how it runs, and how it is pickled
_INHERITED = ("forward", "__reduce__", "__reduce_ex__")


class QSequential(nn.Sequential):
    """nn.Sequential, bit for bit, in which a converted norm and the ReLU behind it are one pass.

    Where a converted layer comes next, the pass may go on to its codes (`fused.norm_relu_layer`).
    Decided in every call anew: children may be exchanged, hooked or switched to evaluation.
    """

    def forward(self, input: Any) -> Any:
        modules = list(self)
        at = 0
        while at < len(modules):
            module, *behind = modules[at : at + 3]
            if behind and is_pair(module, behind[0]):
                layer = behind[1] if len(behind) > 1 else None
                input = norm_relu_before(module, behind[0], layer, input)
                at += 2
            else:
                input = module(input)
                at += 1
        return input


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
