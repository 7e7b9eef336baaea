"""Norm, ReLU and quantizer in one pass, and a residual sum whose ReLU keeps one byte an element.

For users' own models: the functions take the modules, converted or not, and do what calling them
one after the other does.  Where they can they pass less memory: between a converted batch-norm and
the converted layer behind it only codes exist, one byte an element, and the same bits come out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules import module as hooks

from . import norm_computation
from .layer_state import autocast_dtype
from .layers import takes_extremes
from .norm import QBatchNorm


def norm_relu(norm: nn.Module, relu: nn.Module, input: Tensor) -> Tensor:
    """relu(norm(input)), of which a converted norm keeps its input alone.

    One pass where the norm was converted, quantizes none of its operands and trains, the tensor
    lies contiguous or channels-last on the CPU, and no hook waits for what lies between.
    """
    y = _norm_relu(norm, relu, input, deferred=False)
    return _tensor(relu(norm(input))) if y is None else y


def norm_relu_layer(norm: nn.Module, relu: nn.Module, layer: nn.Module, input: Tensor) -> Tensor:
    """layer(relu(norm(input))), of which a converted norm keeps its input and the layer codes.

    One pass, from the norm's input to the layer's codes, where `norm_relu` takes one and the layer
    was converted, its input quantized to the nearest integers over the whole tensor's extremes and
    kept so for grad_weight.
    """
    y = None
    if takes_extremes(layer) and not any(map(_has_hooks, (layer, layer.get_submodule("product")))):
        y = _norm_relu(norm, relu, input, deferred=True)
    return _tensor(layer(norm_relu(norm, relu, input) if y is None else y))


def _norm_relu(norm: nn.Module, relu: nn.Module, input: Tensor, deferred: bool) -> Tensor | None:
    if (
        not isinstance(norm, QBatchNorm)
        or type(relu) is not nn.ReLU
        or _has_hooks(norm)
        or _has_hooks(relu)
        or autocast_dtype(input) is not None
    ):
        return None
    return norm.relu(input, deferred)


def norm_add_relu(norm: nn.Module, relu: nn.Module, input: Tensor, residual: Tensor) -> Tensor:
    """relu(norm(input) + residual), of which a converted norm's keeps one byte an element."""
    y = norm(input)
    plain = not isinstance(norm, QBatchNorm) or type(relu) is not nn.ReLU or _has_hooks(relu)
    if torch.compiler.is_compiling() and not _in_graph(y):
        plain = True  # what the compiler makes of it needs no help
    if plain or y.shape != residual.shape:
        return _tensor(relu(y + residual))
    return _tensor(_AddRelu.apply(y, residual))  # type: ignore[no-untyped-call]


def _tensor(x: Any) -> Tensor:
    assert isinstance(x, Tensor)
    return x


def _has_hooks(module: nn.Module) -> bool:
    """Whether anybody but those who say they only watch sees the module's calls."""
    own = (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
    if torch.compiler.is_compiling():
        return bool(own)
    everywhere = (
        hooks._global_forward_hooks,
        hooks._global_forward_pre_hooks,
        hooks._global_backward_hooks,
        hooks._global_backward_pre_hooks,
    )
    return bool(own) or not all(
        getattr(getattr(hook, "__self__", None), "lets_kernels_pass", False)
        for table in everywhere
        for hook in table.values()
    )


def _in_graph(x: Tensor) -> bool:
    """Whether x belongs to a graph that is compiled for the CPU."""
    return torch.compiler.is_compiling() and x.device.type == "cpu"


class _AddRelu(torch.autograd.Function):
    """relu(x + y); saved: where it was on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.dtypes = x.dtype, y.dtype
        run = torch.ops.qtrain.add_relu if _in_graph(x) else norm_computation.add_relu
        output, off = run(x, y)
        ctx.save_for_backward(off)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        (off,) = ctx.saved_tensors
        run = torch.ops.qtrain.masked if _in_graph(off) else norm_computation.masked
        grad = run(grad_output, off)
        return grad.to(ctx.dtypes[0]), grad.to(ctx.dtypes[1])
