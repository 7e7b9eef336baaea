"""Finds the first non-finite value of a training step: in which layer, in which role."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quantizers.accumulators import Accumulator

from .. import checks
from ..autograd.capture import capturing
from ..inspection.row import SUMS
from ..products.module import products_of
from ..products.operations import Kind
from ..products.probe import Probe
from ..recipe.units import Unit


class NonFiniteError(ValueError):
    """A loss or gradient became NaN or infinite.

    layer, role   where the first such value stood: role is input, output, grad_output, the name of
                  a parameter (weight, bias) or of its gradient (grad_weight, grad_bias); or, where
                  the exact sums are finite, output (accumulator) and the like
    step          steps done before it
    """

    def __init__(self, message: str, *, layer: str, role: str, step: int) -> None:
        super().__init__(message)
        self.layer = layer
        self.role = role
        self.step = step


class _Sums(Probe):
    """The probe of one layer that learns whether its accumulators make what is not finite."""

    def __init__(self, layer: str, found: list[tuple[str, str]]) -> None:
        self._layer, self._found = layer, found

    def summed(self, kind: Kind, unit: Unit, found: Tensor, by: Callable[..., Tensor]) -> None:
        if self._found or not isinstance(unit, Accumulator) or bool(found.isfinite().all()):
            return
        if bool(by(torch.float64).isfinite().all()):
            self._found.append((self._layer, SUMS[kind]))


def first_nonfinite(model: nn.Module, loss: Callable[[], Tensor]) -> tuple[str, str] | None:
    """Layer and role of the first non-finite value while `loss()` and its backward run; None where
    every value was finite.  Roles are those of `NonFiniteError`.

    In a loop of your own, where a loss is NaN: `first_nonfinite(model, lambda: loss_of(model(x)))`,
    before the step's update.  It is a pass as any other: gradients are added to .grad, running
    statistics move.  The order is that of execution: a module's inputs, its parameters, its
    children, its outputs; then, backward, gradients as they arrive.  ValueError within the capture
    of a CUDA graph, whose replays it would not see.
    """
    checks.module(model)
    checks.function("loss", loss, "a function without arguments that returns the loss")
    if capturing():
        raise ValueError("the search for a NaN reads every tensor: not in a captured CUDA graph")
    found: list[tuple[str, str]] = []
    handles: list[Any] = []

    def check(layer: str, role: str, tensor: object) -> None:
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            if not found and not bool(torch.isfinite(tensor).all()):
                found.append((layer, role))

    def before(layer: str, module: nn.Module, inputs: tuple[object, ...]) -> None:
        for value in inputs:
            check(layer, "input", value)
        for name, parameter in module.named_parameters(recurse=False):
            check(layer, name, parameter)

    def after(layer: str, module: nn.Module, inputs: object, output: object) -> None:
        values = tuple(output.values()) if isinstance(output, Mapping) else output
        for value in values if isinstance(values, tuple | list) else (values,):
            check(layer, "output", value)
            if isinstance(value, Tensor) and value.requires_grad:
                handles.append(value.register_hook(partial(check, layer, "grad_output")))

    for name, module in model.named_modules():
        # a converted layer's product is a module of its own; its values are the layer's
        layer = name.removesuffix(".product") or "model"
        handles.append(module.register_forward_pre_hook(partial(before, layer)))
        handles.append(module.register_forward_hook(partial(after, layer)))
        for kind, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                handles.append(parameter.register_hook(partial(check, layer, f"grad_{kind}")))
    probes = [(product, product.probe) for product in products_of(model)]
    for product, _ in probes:
        product.probe = _Sums(product.name, found)
    try:
        value = loss()
        if not isinstance(value, Tensor) or value.numel() != 1:
            checks.refuse("loss", value, "a function that returns the loss, a tensor of one number")
        check("loss", "output", value.detach())
        if not found:
            value.backward()
    finally:
        for handle in handles:
            handle.remove()
        for product, probe in probes:
            product.probe = probe
    return found[0] if found else None
