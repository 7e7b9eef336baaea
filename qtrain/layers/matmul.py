"""Matrix products as a module, so that they can be converted, and their conversion.

torch.matmul and torch.bmm are functions: a model that calls them keeps them in full precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..products.module import QProduct, Shapes
from ..products.operations import BatchedMatmul
from .linear import OneLine

#: input, canonical weight and output of a matrix product of activations: every size may change
ANY_SHAPES: Shapes = ((None,) * 3, (None,) * 3, (None,) * 3)


class Matmul(nn.Module):
    """torch.matmul(input, other) (or torch.bmm) as a module, for operands of at least two axes.

    input: (*, rows, in), other: (*, in, out), batch axes broadcast -> (*, rows, out).  Converted,
    `input` takes the recipe's input quantizer and `other`, seen as (batch, out, in), the weight's.
    """

    def forward(self, input: Tensor, other: Tensor) -> Tensor:
        return torch.matmul(input, other)


class QMatmul(OneLine, Matmul):
    """Matmul whose three products follow a recipe."""

    product: QProduct

    def forward(self, input: Tensor, other: Tensor) -> Tensor:
        if self.product.recipe.products_off:
            return super().forward(input, other)
        for name, x in (("input", input), ("other", other)):
            if not isinstance(x, Tensor):
                self.product.refuse(name, x)
        if input.dim() < 2 or other.dim() < 2:
            raise ValueError(
                f"layer {self.product.name!r}: a quantized matmul needs operands of at least two "
                f"axes, got shapes {tuple(input.shape)} and {tuple(other.shape)}; unsqueeze vectors"
            )
        return matmul(self.product, input, other)

    @staticmethod
    def products(module: nn.Module) -> dict[str, Shapes]:
        """The products of the layer: child name -> shapes."""
        return {"product": ANY_SHAPES}


def matmul(product: QProduct, input: Tensor, other: Tensor) -> Tensor:
    """torch.matmul through a QProduct; shapes as `Matmul`."""
    batch = torch.broadcast_shapes(input.shape[:-2], other.shape[:-2])
    left, right = _stacked(input, batch), _stacked(other, batch)
    output: Tensor = product(BatchedMatmul(), left, right.transpose(1, 2))
    return output.view(*batch, *output.shape[-2:])


def _stacked(x: Tensor, batch: Sequence[int]) -> Tensor:
    """x with one batch axis; a copy keeps the one of the last two axes that is adjacent."""
    if x.stride(-2) < x.stride(-1):
        return _stacked(x.transpose(-2, -1), batch).transpose(1, 2)
    return x.expand(*batch, *x.shape[-2:]).reshape(math.prod(batch), *x.shape[-2:])
