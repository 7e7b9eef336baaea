"""Quantized layers: torch's own modules with another forward.

A converted layer keeps its parameters, buffers, hooks and parametrizations; it gains one child,
`product`, that holds its recipe and state.  Its class is a subclass of the layer's own class.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from ..products.module import QProduct, Shapes
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
        batched = input if input.dim() > 1 else input.unsqueeze(0)
        output: Tensor = self.product(Linear(), batched, self.weight, self.bias)
        return output.view(output.shape[-1:]) if input.dim() == 1 else output

    @staticmethod
    def products(module: nn.Linear) -> dict[str, Shapes]:
        """The products of the layer: child name -> shapes."""
        weight = (1, module.out_features, module.in_features)
        return {"product": ((None, module.in_features), weight, (None, module.out_features))}
