"""Layers that compute the product of one call of a function, whose weight the caller holds.

`F.linear`, `F.conv2d` and their like are given a weight, a parameter or what was computed of one;
matrix products and attention have modules of their own (`matmul`, `attention`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..products.convolution import Convolution
from ..products.module import QProduct, Shapes, shapes_of
from ..products.operations import Linear, Operation
from .linear import OneLine, linear

#: of a canonical weight, (groups, out, in, *kernel)
Sizes = Sequence[int]


class WeightProduct(QProduct):
    """A product with a weight that its layer does not hold: it keeps the sizes, from which a
    state_dict makes the layer again."""

    def _initial(self) -> dict[str, Tensor]:
        sizes: list[int] = list(self.shapes[1])  # type: ignore[arg-type]
        return {**super()._initial(), "sizes": torch.tensor(sizes, dtype=torch.int64)}


class QLinearCall(OneLine, nn.Module):
    """F.linear(input, weight, bias) whose three products follow a recipe."""

    product: WeightProduct

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(self.product, input, weight, bias)

    @staticmethod
    def products(sizes: Sizes) -> dict[str, Shapes]:
        """The products of the layer: child name -> shapes."""
        return {"product": shapes_of(sizes)}

    @staticmethod
    def operation(sizes: Sizes) -> Operation:
        """What it computes, as far as that is known without an input."""
        return Linear()


class QConvolutionCall(OneLine, nn.Module):
    """F.conv1d, F.conv2d or F.conv3d whose three products follow a recipe.

    operation   the convolution;  input: (N, C, *S)
    """

    product: WeightProduct
    transposed = False

    def forward(
        self, operation: Convolution, input: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        output: Tensor = self.product(operation, input, weight, bias)
        return output

    @staticmethod
    def products(sizes: Sizes) -> dict[str, Shapes]:
        """The products of the layer: child name -> shapes."""
        return {"product": shapes_of(sizes)}

    @classmethod
    def operation(cls, sizes: Sizes) -> Operation:
        """What it computes, as far as that is known without an input."""
        ones = (1,) * (len(sizes) - 3)
        return Convolution(ones, (0,) * len(ones), ones, sizes[0], cls.transposed)


class QTransposedConvolutionCall(QConvolutionCall):
    """F.conv_transpose1d, 2d or 3d whose three products follow a recipe."""

    transposed = True
