"""Quantized layers: torch's own modules with another forward.

A converted layer keeps its parameters, buffers, hooks and parametrizations; it gains one child,
`product`, that holds its recipe and state.  Its class is a subclass of the layer's own class.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from ..products.module import QProduct, Shapes, shapes_of
from ..products.operations import Linear


class QuantizedLayer(Protocol):
    """A module whose product runs under a recipe."""

    product: QProduct

    def extra_repr(self) -> str: ...


class OneLine:
    """Shows a converted layer in one line: torch's own, and the name of its recipe."""

    def __repr__(self: QuantizedLayer) -> str:
        parts = filter(None, (self.extra_repr(), self.product.recipe.name))
        return f"{type(self).__name__}({'; '.join(parts)})"


class QLinear(OneLine, nn.Linear):
    """torch.nn.Linear whose three products follow a recipe."""

    product: QProduct

    def forward(self, input: Tensor) -> Tensor:
        if self.product.recipe.products_off:
            return super().forward(input)
        if not isinstance(input, Tensor):
            self.product.refuse("input", input)
        return linear(self.product, input, self.weight, self.bias)

    @staticmethod
    def products(module: nn.Linear) -> dict[str, Shapes]:
        """The products of the layer: child name -> shapes."""
        return {"product": shapes_of((1, module.out_features, module.in_features))}


def linear(product: QProduct, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear through a QProduct; input: (*, in), a vector too."""
    batched = input if input.dim() > 1 else input.unsqueeze(0)
    output: Tensor = product(Linear(), batched, weight, bias)
    return output.view(output.shape[-1:]) if input.dim() == 1 else output
