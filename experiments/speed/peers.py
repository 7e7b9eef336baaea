"""Other simulators on the same network; each needs its package, which is not ours to install."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn


def replaced(model: nn.Module, make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """The model with every Linear and Conv2d replaced, in place, by what `make` gives."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in (nn.Linear, nn.Conv2d):
                setattr(parent, name, make(child))
    return model


def qtorch(model: nn.Module) -> nn.Module:
    """QPyTorch: inputs of layers and their gradients in 8-bit block floating point; the products
    stay in fp32, weights are left."""
    numbers: Any = import_module("qtorch")
    quant: Any = import_module("qtorch.quant")
    block = numbers.BlockFloatingPoint(wl=8, dim=0)

    def make(layer: nn.Module) -> nn.Module:
        quantizer = quant.Quantizer(
            forward_number=block,
            backward_number=block,
            forward_rounding="nearest",
            backward_rounding="stochastic",
        )
        return nn.Sequential(quantizer, layer)

    return replaced(model, make)


def torchao(model: nn.Module) -> nn.Module:
    """torchao: linear layers' three products in int8, one scale a row, dynamic; nothing else."""
    quantization: Any = import_module("torchao.quantization")
    training: Any = import_module("torchao.prototype.quantized_training")
    quantization.quantize_(model, training.Int8MixedPrecisionTrainingConfig())
    return model


def microxcaling(model: nn.Module) -> nn.Module:
    """microxcaling: MXINT8 in blocks of 32 in all three products of linear and convolution layers,
    attention's products left."""
    mx: Any = import_module("mx")
    choice = {"w_elem_format": "int8", "a_elem_format": "int8", "block_size": 32, "scale_bits": 8}
    specs = mx.finalize_mx_specs({**choice, "bfloat": 0, "custom_cuda": False})

    def make(layer: nn.Module) -> nn.Module:
        bias = layer.bias is not None
        copy: nn.Module
        if isinstance(layer, nn.Conv2d):
            copy = mx.Conv2d(
                layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride,
                layer.padding, layer.dilation, layer.groups, bias, mx_specs=specs,
            )  # fmt: skip
        else:
            assert isinstance(layer, nn.Linear)
            copy = mx.Linear(layer.in_features, layer.out_features, bias, mx_specs=specs)
        copy.load_state_dict(layer.state_dict())
        return copy.to(layer.weight.device)

    return replaced(model, make)
