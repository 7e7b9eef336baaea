"""Products of operands in blocks along the sum, written out in float64.

Matrices of a convolution come from torch's own convolution of unit images with unit kernels; the
quantizer is the public one, on matrices of two axes.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from qtrain import Forward, GradInput, GradWeight, Recipe, quantize
from qtrain.products.module import products_of
from qtrain.products.probe import Probe
from quantizers import (
    IntFormat,
    QTensor,
    Quantizer,
    Scale,
    blocks,
    ceil,
    e2m1,
    e4m3,
    e5m2,
    e8m0,
    minmax,
)

MX = Quantizer(format=e4m3, granularity=blocks(8), scale=Scale(e8m0, rounding=ceil))
FP4 = Quantizer(format=e2m1, granularity=blocks(4, 4), scale=Scale(e4m3, headroom=17 / 16))
INT8 = Quantizer(format=IntFormat(8), granularity=blocks(6, 3))
UINT8 = Quantizer(
    format=IntFormat(8, signed=False, symmetric=False), range=minmax, granularity=blocks(5)
)
E5M2 = Quantizer(format=e5m2, granularity=blocks(None))
KINDS = {"mx": MX, "fp4 tiles": FP4, "int8 tiles": INT8, "affine": UINT8, "whole rows": E5M2}


def recipe(x: Any, w: Any = None, g: Any = None, **more: Any) -> Recipe:
    w, g = w or x, g or x
    return Recipe(
        name="blocks",
        forward=Forward(input=x, weight=w),
        grad_input=GradInput(grad_output=g),
        grad_weight=GradWeight(grad_output=g),
        **more,
    )


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


# The oracle: matrices with one scale an element ---------------------------------------------------


def quantized(by: Any, matrix: Tensor) -> tuple[Tensor, Tensor, int]:
    """A matrix (kept, summed) -> elements and scales of every element, and the block's length."""
    q = by(matrix)
    scale = torch.ones(1, 1) if q.scale is None else q.scale
    for axis in (0, 1):
        if q.block and q.block[axis] > 1:
            scale = scale.repeat_interleave(q.block[axis], axis)
    scale = scale[: matrix.shape[0], : matrix.shape[1]].expand(matrix.shape)
    return q.unshifted().double(), scale, min(q.block[1] if q.block else 10**9, matrix.shape[1])


class Sum:
    """sum over blocks of (sa sb) (a b^T), in fp32, of one pair of operands after the other."""

    @staticmethod
    def inner(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T).float()

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add(self, a: tuple[Tensor, Tensor, int], b: tuple[Tensor, Tensor, int]) -> None:
        step = min(a[2], b[2])
        for start in range(0, a[0].shape[1], step):
            at = slice(start, start + step)
            part = self.inner(a[0][:, at], b[0][:, at])
            part = part * (a[1][:, start, None] * b[1][None, :, start])
            self.total = part if self.total is None else self.total + part


def product(by: tuple[Any, Any], a: Tensor, b: Tensor) -> Tensor:
    """a: (M, K), b: (N, K) -> (M, N)."""
    found = Sum()
    found.add(quantized(by[0], a), quantized(by[1], b))
    assert found.total is not None
    return found.total


def unit_maps(layer: Any, size: tuple[int, ...]) -> list[Tensor]:
    """For each position of the kernel which places of the input each place of the output meets:
    (places of the output, places of the input), 0 or 1."""
    one = copy.deepcopy(layer)
    count = int(torch.tensor(size).prod())
    images = torch.eye(count).view(count, 1, *size)
    found = []
    for position in torch.eye(layer.weight[0, 0].numel()):
        kernel = position.view(1, 1, *layer.weight.shape[2:])
        one.weight, one.bias, one.groups = nn.Parameter(kernel), None, 1
        one.in_channels = one.out_channels = 1
        found.append(one(images).detach().flatten(1).T)
    return found


def convolved(layer: Any, x: Tensor, g: Tensor, by: dict[str, Any]) -> list[Tensor]:
    """output (without bias), grad_input and grad_weight (groups, out, in, positions)."""
    maps = [m.double() for m in unit_maps(layer, tuple(x.shape[2:]))]
    groups, transposed = layer.groups, isinstance(layer, nn.ConvTranspose2d)
    weight = layer.weight.detach().flatten(2).unflatten(0, (groups, -1))
    weight = weight.transpose(1, 2) if transposed else weight  # groups, out, in, positions
    n, parts = x.shape[0], []
    for group in range(groups):
        w = weight[group]
        xs, gs = (t.flatten(2).chunk(groups, 1)[group].permute(0, 2, 1) for t in (x, g))
        pixels = {  # of each sample and place, its channels
            name: quantized(by[name], t.flatten(0, 1)) for name, t in (("x", xs), ("g", gs))
        }

        def seen(q: tuple[Tensor, Tensor, int], m: Tensor) -> tuple[Tensor, Tensor, int]:
            """What each place meets: elements and scales."""
            parts = (m @ part.double().unflatten(0, (n, -1)) for part in q[:2])
            elements, scale = (part.flatten(0, 1) for part in parts)
            return elements, scale.float(), q[2]

        output, grad_input, positions = Sum(), Sum(), []
        for p, m in enumerate(maps):
            output.add(seen(pixels["x"], m), quantized(by["w"], w[:, :, p]))
            grad_input.add(seen(pixels["g"], m.T), quantized(by["w_back"], w[:, :, p].T))
            one, other = gs, xs  # the larger map is unfolded, before it is quantized
            if transposed:
                one = (m.T @ gs.double()).float()
            else:
                other = (m @ xs.double()).float()
            left, right = (t.permute(2, 0, 1).flatten(1) for t in (one, other))
            positions.append(product((by["g2"], by["x_back"]), left, right))
        assert output.total is not None and grad_input.total is not None
        parts.append(
            [
                output.total.unflatten(0, (n, -1)).permute(0, 2, 1),
                grad_input.total.unflatten(0, (n, -1)).permute(0, 2, 1),
                torch.stack(positions, -1),
            ]
        )
    out, into, grads = zip(*parts, strict=True)
    return [torch.cat(out, 1), torch.cat(into, 1), torch.stack(grads)]


class Kept(Probe):
    def __init__(self) -> None:
        self.found: dict[tuple[str, str], QTensor] = {}

    def operand(
        self, kind: Any, operand: str, x: Tensor, q: QTensor, folded: bool, backward: bool
    ) -> None:
        assert x.shape == q.elements.shape
        self.found[kind, operand] = q


def kept(r: Recipe, layer: nn.Module, x: Tensor) -> dict[tuple[str, str], QTensor]:
    model, probe = quantize(nn.Sequential(layer), recipe=r), Kept()
    for one in products_of(model):
        one.probe = probe
    model(x.requires_grad_()).square().sum().backward()
    return probe.found
