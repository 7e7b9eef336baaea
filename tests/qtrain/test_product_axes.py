"""What a product's labels say of its axes, against the product itself, in integers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qtrain.products.convolution import Convolution
from qtrain.products.operands import PLACES
from qtrain.products.operations import KINDS, BatchedMatmul, Kind, Linear, Operation
from qtrain.products.product import Product

#: operation, shapes of its input and canonical weight
CASES: dict[str, tuple[Operation, tuple[int, ...], tuple[int, ...]]] = {
    "linear": (Linear(), (4, 6), (1, 5, 6)),
    "linear of tokens": (Linear(), (2, 3, 6), (1, 5, 6)),
    "matmul": (BatchedMatmul(), (2, 3, 6), (2, 5, 6)),
    **{
        f"{'transposed' if transposed else 'convolution'} {space}d, {groups} groups": (
            Convolution((2,) * space, (1,) * space, (1,) * space, groups, transposed),
            (3, 4 * groups, *(5, 6, 5)[:space]), (groups, 2, 4, *(3, 2, 3)[:space]),
        )
        for transposed in (False, True) for space in (1, 2, 3) for groups in (1, 2)
    },
}  # fmt: skip


def drawn(shape: tuple[int, ...] | list[int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-9, 10, tuple(shape), generator=generator).double()


def products(name: str, kind: Kind) -> tuple[Product, list[Tensor], Tensor]:
    """The product, a and b, and `like`."""
    operation, input, weight = CASES[name]
    x, w = drawn(input, 1), drawn(weight, 2)
    g = drawn(tuple(operation.product("forward", x, w, x).shape), 3)
    operands = {"forward": [x, w], "grad_input": [g, w], "grad_weight": [g, x]}
    return Product(operation, kind), operands[kind], w if kind == "grad_weight" else x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_what_varies_along_kept_axes_multiplies_the_result(name: str, kind: Kind) -> None:
    product, operands, like = products(name, kind)
    whole = product.run(*operands, like)
    for place, (operand, x) in enumerate(zip(PLACES, operands, strict=True)):
        kept, summed = product.axes(operand, x.dim())
        assert sorted(kept + summed) == list(range(x.dim()))
        sizes = [size if axis in kept else 1 for axis, size in enumerate(x.shape)]
        scale = drawn(sizes, 4)
        scaled = [x * scale if i == place else y for i, y in enumerate(operands)]
        assert torch.equal(
            product.run(*scaled, like), whole * scale.reshape(product.lifted(operand, sizes))
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_the_parts_of_a_sum_add_to_the_whole(name: str, kind: Kind) -> None:
    product, (a, b), like = products(name, kind)
    count, each = product.terms(a.shape, b.shape)
    for size in (1, 2, count):
        parts = [product.run(*part, like) for part in product.parts(a, b, count, size)]
        assert len(parts) == -(-count // size)
        assert torch.equal(sum(parts, torch.zeros(())), product.run(a, b, like))
    ones = product.run(torch.ones_like(a), torch.ones_like(b), like)
    assert 0 < ones.max() <= count * each
