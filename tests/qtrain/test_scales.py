"""Scales whose product fp32 does not hold, while the product of the operands fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qtrain import quantize
from qtrain.products.blocks import multiply
from qtrain.products.convolution import Convolution
from qtrain.products.engines.cut import CutInt8
from qtrain.products.engines.float_units import Float32, reference
from qtrain.products.engines.matrices import MatricesInt8
from qtrain.products.engines.onednn import OneDnnInt8
from qtrain.products.engines.scales import times
from qtrain.products.engines.unfolded import UnfoldedInt8
from qtrain.products.operations import Linear, Operation
from qtrain.products.product import Product
from quantizers import IntFormat, QTensor, kernels

ENGINES = [
    OneDnnInt8(0), MatricesInt8(0, 0), UnfoldedInt8(0), CutInt8(UnfoldedInt8(0)), Float32(),
    reference,
]  # fmt: skip
INT8 = IntFormat(8)
#: exponents of two scales: an ordinary product; below, and beyond, fp32's normal numbers
EXPONENTS = [(-20, 3), (-100, -40), (-149, -10), (-140, -140), (-126, 0), (100, 40), (127, 127)]


def significands(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 1


def scales(exponent: int, *shape: int, seed: int = 0) -> Tensor:
    exponents = torch.full(shape, exponent, dtype=torch.float64)
    return torch.ldexp(significands(*shape, seed=seed).double(), exponents).float()


def rounded(x: Tensor) -> Tensor:
    """fp64 to 24 significant bits."""
    significand, exponent = torch.frexp(x)
    return torch.ldexp(significand.float().double(), exponent.double())


@pytest.mark.parametrize("exponents", EXPONENTS, ids=str)
def test_the_product_of_scales_has_24_bits_at_any_exponent(exponents: tuple[int, int]) -> None:
    a, b = scales(exponents[0], 7, 1), scales(exponents[1], 1, 5, seed=1)
    expected = rounded(a.double() * b.double())
    ordinary = -126 <= sum(exponents) < 126
    got = times(a, b)
    assert torch.equal(got.double(), expected)
    assert got.dtype == (torch.float32 if ordinary else torch.float64)
    with kernels.eager():  # as where the values are not known
        assert torch.equal(times(a, b), expected)
    if ordinary:
        assert torch.equal(got, a * b)
    one = times(a[0, 0], b[0, 0])
    assert torch.equal(one.double().view(()), expected[0, 0])
    assert one.dtype == torch.float32 or one.dim() == 1


def test_zeros_and_what_is_not_finite_stay_in_fp32() -> None:
    a = torch.tensor([0.0, 1e-30, float("nan"), float("inf"), 2.0])
    for b in (torch.tensor(3.0), torch.tensor(0.0), torch.tensor(float("inf"))):
        got = times(a, b)
        assert got.dtype == torch.float32
        assert torch.equal(got.nan_to_num(7.0), (a * b).nan_to_num(7.0))
        with kernels.eager():
            assert torch.equal(times(a, b).nan_to_num(7.0), (a * b).double().nan_to_num(7.0))


@pytest.mark.parametrize("exponents", EXPONENTS, ids=str)
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_every_engine_gives_the_rounded_product(engine: Any, exponents: tuple[int, int]) -> None:
    """fl32(fl32(sum) * fl24(scale_a * scale_b)), then the bias, bit for bit."""
    cases: list[tuple[Operation, tuple[int, ...], tuple[int, ...]]] = [
        (Linear(), (6, 64), (1, 5, 64)),
        (Convolution((1, 1), (1, 1), (1, 1), 1), (2, 8, 6, 6), (1, 5, 8, 3, 3)),
    ]
    for operation, left, right in cases:
        if isinstance(engine, OneDnnInt8 | MatricesInt8):
            if isinstance(engine, MatricesInt8) != isinstance(operation, Linear):
                continue
        a = QTensor(codes(*left), scales(exponents[0], *[1] * len(left)), None, INT8, left)
        for channels in (1, 5):
            shape = [1, channels, *[1] * (len(right) - 2)]
            block = (1, right[1] // channels, *right[2:])
            b = QTensor(codes(*right, seed=1), scales(exponents[1], *shape), None, INT8, block)
            sums = operation.product(
                "forward", a.elements.double(), b.elements.double(), a.elements
            )
            axis = [1, -1] if isinstance(operation, Linear) else [1, -1, 1, 1]
            scale = rounded(a.scale.double().view(()) * b.scale.double().view(axis))
            for bias in (None, torch.zeros(5), scales(-20, 5, seed=3)):
                forward = Product(operation, "forward")
                got = multiply(forward, a, b, a.elements, (engine, reference), bias=bias)
                expected = (sums * scale).float()
                if bias is not None:
                    expected = expected + bias.view(axis)
                assert torch.equal(got.nan_to_num(3.0), expected.nan_to_num(3.0))
    if sum(exponents) < -250:
        assert not expected.any() or bias is not None


def codes(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)


def _layers() -> list[tuple[nn.Module, tuple[int, ...]]]:
    return [(nn.Linear(24, 8), (16, 24)), (nn.Conv2d(6, 8, 3), (4, 6, 8, 8))]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("sizes", [(1e-25, 1e-10, 1.0), (1e-10, 1e-25, 1e-8), (1e22, 1e14, 1e-30)])
def test_a_layer_of_very_small_or_large_operands(
    which: int, bits: int, sizes: tuple[float, float, float]
) -> None:
    """Output and gradients are those of ordinary operands times the sizes, to the format's error,
    wherever those are ordinary numbers."""
    torch.manual_seed(0)
    layer, shape = _layers()[which]
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    x, g = torch.randn(shape), torch.randn(layer(torch.zeros(shape)).shape)
    found = []
    for size in ((1.0, 1.0, 1.0), sizes):
        with torch.no_grad():
            twin, _ = _layers()[which]
            twin.load_state_dict(layer.state_dict())
            twin.weight.mul_(size[1])  # type: ignore[operator]
        model = quantize(twin, bits=bits)
        own = (x * size[0]).requires_grad_()
        output = model(own)
        output.backward(g * size[2])
        weight = model.weight.grad
        found.append((output.double(), own.grad.double(), weight.double()))  # type: ignore
    powers = (sizes[0] * sizes[1], sizes[1] * sizes[2], sizes[0] * sizes[2])
    for plain, scaled, power in zip(*found, powers, strict=True):
        if not 1e-36 < power < 1e36:
            continue
        error = (scaled / power - plain).norm() / plain.norm()
        assert error < (0.02 if bits == 8 else 4e-3)  # the weight's gradient is from bf16
