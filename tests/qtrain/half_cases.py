"""grad_weight products of odd sizes, for units of 16 bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qtrain.products.convolution import Convolution
from qtrain.products.engines.task import ANY, Task
from qtrain.products.operations import BatchedMatmul, Linear, Operation
from qtrain.products.product import Product

#: operation, input, canonical weight; sums of one block of positions and more, of an odd number
CASES: dict[str, tuple[Operation, tuple[int, ...], tuple[int, ...]]] = {
    "linear": (Linear(), (2, 300, 40), (1, 9, 40)),
    "linear, one position": (Linear(), (1, 33), (1, 8, 33)),
    "linear, many rows": (Linear(), (70, 32), (1, 1030, 32)),
    "matrices": (BatchedMatmul(), (3, 257, 65), (3, 17, 65)),
    "3x3": (Convolution((1, 1), (1, 1), (1, 1), 1), (3, 33, 11, 9), (1, 10, 33, 3, 3)),
    "strided": (Convolution((2, 1), (0, 2), (1, 1), 1), (2, 34, 17, 8), (1, 16, 34, 2, 3)),
    "dilated": (Convolution((1, 2), (2, 1), (2, 3), 1), (2, 5, 9, 12), (1, 4, 5, 3, 2)),
    "groups": (Convolution((1, 1), (1, 1), (1, 1), 3), (2, 21, 6, 7), (3, 4, 7, 3, 3)),
    "1x1": (Convolution((1, 1), (0, 0), (1, 1), 1), (2, 64, 5, 5), (1, 24, 64, 1, 1)),
    "1d": (Convolution((2,), (3,), (1,), 2), (3, 12, 29), (2, 5, 6, 4)),
}


def of(name: str) -> tuple[Product, tuple[int, ...], Tensor, Tensor]:
    """The product, the shape of its grad_output, its input and what is differentiated."""
    operation, input, weight = CASES[name]
    x, w = torch.zeros(input), torch.zeros(weight)
    product = Product(operation, "grad_weight")
    return product, tuple(operation.product("forward", x, w, x).shape), x, w


def task(product: Product, a: Tensor, b: Tensor) -> Task:
    size = product.terms(a.shape, b.shape)
    return Task(
        product, *size, ANY, ANY, "float", sums=False, significant=8, half=torch.bfloat16
    )  # fmt: skip


def whole(shape: Any, low: int, high: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, tuple(shape), generator=generator)
