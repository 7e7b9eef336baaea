"""Norm, ReLU and quantizer in one pass, and a residual sum whose ReLU keeps one byte an element.

For users' own models: the functions take the modules, converted or not, and do what calling them
one after the other does.  Where they can they pass less memory: between a converted batch-norm and
the converted layer behind it only codes exist, one byte an element, and the same bits come out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules import module as hooks

from quantizers import IntFormat, Quantizer, nearest_even
from quantizers.protocol import straight_through

from ..autograd.contexts import autocast_dtype
from ..autograd.selective import unseen
from ..norms.batch import QBatchNorm
from ..norms.kept import QKeepsForward
from ..norms.operations import add_relu, masked
from .convolution import QConvNd
from .linear import QLinear


def norm_relu(norm: nn.Module, relu: nn.Module, input: Tensor) -> Tensor:
    """relu(norm(input)), of which a converted norm keeps its input alone.

    One pass where the norm was converted, quantizes none of its operands and trains, the tensor
    lies contiguous or channels-last where kernels run (the CPU, CUDA), and nobody waits for what
    lies between: no hook, no forward that was replaced on the object.
    """
    return norm_relu_before(norm, relu, None, input)


def norm_relu_layer(norm: nn.Module, relu: nn.Module, layer: nn.Module, input: Tensor) -> Tensor:
    """layer(relu(norm(input))), of which a converted norm keeps its input and the layer codes.

    One pass, from the norm's input to the layer's codes, where `norm_relu` takes one and the layer
    was converted, its input quantized to the nearest integers over the whole tensor's extremes and
    kept so for grad_weight.
    """
    output: Tensor = layer(norm_relu_before(norm, relu, layer, input))
    return output


def norm_relu_before(
    norm: nn.Module, relu: nn.Module, layer: nn.Module | None, input: Tensor
) -> Tensor:
    """relu(norm(input)) for nobody but the layer, which may make codes of it (`Deferred`); for
    everybody: None."""
    y = None
    if layer is not None and _takes_extremes(layer):
        if _runs_forward_alone(layer) and _runs_forward_alone(layer.get_submodule("product")):
            y = _norm_relu(norm, relu, input, deferred=True)
    if y is None:
        y = _norm_relu(norm, relu, input, deferred=False)
    if y is None:
        y = relu(norm(input))
    return y


def is_pair(norm: nn.Module, relu: nn.Module) -> TypeGuard[QBatchNorm]:
    """Whether the two, called one after the other, are of the kinds that one pass can replace."""
    alone = isinstance(norm, QBatchNorm) and not isinstance(norm, QKeepsForward)
    return alone and type(relu) is nn.ReLU


def _norm_relu(norm: nn.Module, relu: nn.Module, input: Tensor, deferred: bool) -> Tensor | None:
    if (
        not is_pair(norm, relu)
        or not _runs_forward_alone(norm)
        or not _runs_forward_alone(relu)
        or not isinstance(input, Tensor)  # torch.fx asks with a proxy
        or autocast_dtype(input) is not None
    ):
        return None
    return norm.fused_relu(input, deferred)


@unseen
def norm_add_relu(norm: nn.Module, relu: nn.Module, input: Tensor, residual: Tensor) -> Tensor:
    """relu(norm(input) + residual), of which a converted norm's keeps one byte an element."""
    y = norm(input)
    plain = not is_pair(norm, relu) or not _runs_forward_alone(relu)
    if torch.compiler.is_compiling() and y.device.type not in add_relu.graphs:
        plain = True  # what the compiler makes of it needs no help
    output: Tensor
    if plain or y.shape != residual.shape:
        output = relu(y + residual)
    else:
        output = _AddRelu.apply(y, residual)  # type: ignore[no-untyped-call]
    return output


def _runs_forward_alone(module: nn.Module) -> bool:
    """Whether a call of the module is its class's forward, eager in an eager model, and nobody but
    those who say they only watch sees it."""
    if "forward" in vars(module) or module._compiled_call_impl is not None:
        return False
    if module._backward_hooks or module._backward_pre_hooks:
        return False
    if not (_only_watch(module._forward_hooks) and _only_watch(module._forward_pre_hooks)):
        return False
    if torch.compiler.is_compiling():
        return True
    return all(
        map(
            _only_watch,
            (
                hooks._global_forward_hooks,
                hooks._global_forward_pre_hooks,
                hooks._global_backward_hooks,
                hooks._global_backward_pre_hooks,
            ),
        )
    )


def _only_watch(table: Mapping[Any, Any]) -> bool:
    """Whether all hooks say that a kernel may take the place of what they are put on."""
    for hook in table.values():
        if not getattr(getattr(hook, "__self__", None), "lets_kernels_pass", False):
            return False
    return True


class _AddRelu(torch.autograd.Function):
    """relu(x + y); saved: where it was on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.dtypes = x.dtype, y.dtype
        output, off = add_relu(x, y)
        ctx.save_for_backward(off)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        (off,) = ctx.saved_tensors
        grad = masked(grad_output, off)
        return grad.to(ctx.dtypes[0]), grad.to(ctx.dtypes[1])


def _takes_extremes(layer: nn.Module) -> bool:
    """Whether a converted layer needs of its input no more than integers nearest to it, over a
    range that its extremes give: see `Deferred`."""
    if not isinstance(layer, QLinear | QConvNd) or layer.product.probe is not None:
        return False
    recipe = layer.product.recipe
    quantizer = recipe.forward.input
    if isinstance(layer, QConvNd):
        padding = layer.padding
        if layer.padding_mode != "zeros" or (isinstance(padding, str) and padding != "valid"):
            return False
    return (
        type(quantizer) is Quantizer
        and isinstance(quantizer.format, IntFormat)
        and quantizer.by_extremes
        and quantizer.rounding == nearest_even
        and straight_through(quantizer)
        and recipe.slots["grad_weight", "input"].reused
    )


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
