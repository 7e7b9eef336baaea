"""nn.Sequential with fused norms: `qtrain.fused` where norm, ReLU and layer follow one another."""

from __future__ import annotations

from typing import Any

from torch import nn

from .fused import is_pair, norm_relu_before


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
