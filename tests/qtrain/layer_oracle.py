"""What a quantized layer must compute, from torch's own layer in float64 on the quantizers' codes.

The layer's geometry is torch's: the plain layer, in double, holds the weight's codes and meets the
input's, so that its output and, by autograd, its gradients are the exact sums of the products.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qtrain import Forward, GradInput, GradWeight, Recipe
from quantizers import QTensor, Quantizer, fp32
from quantizers.protocol import init_state

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

_NEAR = Quantizer(format=fp32, range=None)
#: every product through qtrain, no digit lost: what differs from torch is the order of sums
NEAR = Recipe(
    name="near",
    forward=Forward(input=_NEAR, weight=_NEAR),
    grad_input=GradInput(grad_output=_NEAR),
    grad_weight=GradWeight(grad_output=_NEAR),
)


@dataclass
class Expected:
    """Of one step; grad_weight in fp64 with the bound of its error, the rest as it must be."""

    output: Tensor
    grad_input: Tensor
    grad_weight: Tensor
    grad_weight_bound: Tensor
    grad_bias: Tensor | None


def canonical(layer: nn.Module, weight: Tensor) -> Tensor:
    """The (groups, out, in, *kernel) view of a weight."""
    groups = getattr(layer, "groups", 1)
    if isinstance(layer, TRANSPOSED):
        return weight.view(groups, -1, *weight.shape[1:]).transpose(1, 2)
    return weight.view(groups, weight.shape[0] // groups, *weight.shape[1:])


def raw(layer: nn.Module, weight: Tensor) -> Tensor:
    """The layer's own layout of a canonical weight."""
    if isinstance(layer, TRANSPOSED):
        weight = weight.transpose(1, 2)
    return weight.flatten(0, 1)


def codes(q: QTensor) -> Tensor:
    """Elements less zero point, fp64."""
    values = q.elements.double()
    return values if q.zero_point is None else values - q.zero_point.double()


def quantized(recipe: Recipe, product: str, operand: str, x: Tensor, key: Any = None) -> QTensor:
    """An operand through its slot's quantizer, with a fresh state."""
    quantizer = recipe.slot(product, operand)
    state = init_state(quantizer, [None] * x.dim()) if operand == "input" else None
    return quantizer(x.detach(), state=state, key=key)


def step(
    layer: nn.Module, recipe: Recipe, x: Tensor, grad: Tensor, *args: Any, key: Any = None
) -> Expected:
    """Output and gradients of `layer` under `recipe`.

    Scales: the input's per tensor, the weight's per tensor or per output channel, the gradient's
    per tensor; every operand of integer elements but grad_weight's gradient, which may be a float.
    """
    weight: Any = layer.weight
    xq = quantized(recipe, "forward", "input", x)
    wq = quantized(recipe, "forward", "weight", canonical(layer, weight))
    assert xq.scale is not None and wq.scale is not None

    double: Any = copy.deepcopy(layer).double()
    double.bias = None
    double.weight.data.copy_(raw(layer, codes(wq)))
    xv = codes(xq).requires_grad_()
    sums = double(xv, *args)

    channels = 1 if isinstance(layer, nn.Linear) else len(layer.kernel_size) + 1  # type: ignore
    per_channel = wq.scale.expand(*canonical(layer, weight).shape[:2], *wq.scale.shape[2:])
    sw = per_channel.flatten().view(-1, *[1] * (channels - 1))
    if isinstance(layer, nn.Linear):
        sw = sw.view(-1)
    sx = xq.scale.view(())
    output = sums.detach().float() * (sx * sw)
    bias: Any = layer.bias
    if bias is not None:
        output = output + bias.detach().view(sw.shape)

    # grad_input: a scale that varies along the summed axis goes into the gradient first; one a
    # group, which the sum leaves whole, multiplies the result
    fold = wq.scale.shape[1] > 1
    folded = grad * sw if fold else grad
    gq = quantized(recipe, "grad_input", "grad_output", folded, key)
    assert gq.scale is not None
    total = torch.autograd.grad(sums, xv, codes(gq), retain_graph=True)[0].float()
    scale = gq.scale.view(())
    channel = 0 if total.dim() < 2 else total.dim() - channels
    per_group = wq.scale.flatten().repeat_interleave(x.shape[channel] // wq.scale.numel())
    by = scale * per_group.view(-1, *[1] * (channels - 1)) if wq.scale.numel() > 1 else None
    grad_input = total * (scale if fold else scale * wq.scale.view(()) if by is None else by)

    g = quantized(recipe, "grad_weight", "grad_output", grad)
    gv = codes(g)
    grad_weight = torch.autograd.grad(sums, double.weight, gv, retain_graph=True)[0]
    if not g.elements.is_floating_point():
        assert g.scale is not None
        exact = grad_weight.float() * (g.scale.view(()) * sx)
        return Expected(
            output, grad_input, exact.double(), torch.zeros_like(grad_weight),
            _grad_bias(layer, x, grad, *args),
        )  # fmt: skip
    factor = float(sx) * (1.0 if g.scale is None else float(g.scale))
    absolute = copy.deepcopy(double)
    magnitudes = absolute(xv.detach().abs(), *args)
    bound = torch.autograd.grad(magnitudes, absolute.weight, gv.abs())[0]
    # a weight meets each position of the smaller of the two maps at most once, and scales round
    terms = grad.numel() // max(sw.numel(), 1) if channels > 1 else grad.numel() // grad.shape[-1]
    smaller = max(min(terms, x.numel() // x.shape[-channels]), 1)
    return Expected(
        output=output,
        grad_input=grad_input,
        grad_weight=grad_weight * factor,
        grad_weight_bound=bound * factor * (smaller + 3) * 2.0**-23,
        grad_bias=_grad_bias(layer, x, grad, *args),
    )


def _grad_bias(layer: nn.Module, x: Tensor, grad: Tensor, *args: Any) -> Tensor | None:
    """In fp64, rounded."""
    twin: Any = copy.deepcopy(layer).double()
    if twin.bias is None:
        return None
    output = twin(x.detach().double(), *args)
    found: Tensor = torch.autograd.grad(output, twin.bias, grad.double())[0]
    return found.float()
