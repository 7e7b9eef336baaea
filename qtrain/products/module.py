"""The child of a quantized layer that computes one product under a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from quantizers.tensor_checks import REAL

from ..autograd.contexts import autocast_dtype, without_autocast
from ..autograd.selective import hidden, torch_modes
from ..recipe import Recipe
from .apply import apply
from .call import Call, located
from .held import Held
from .operations import Operation
from .watched import Shapes as Shapes
from .watched import Watched


def shapes_of(weight: Sequence[int]) -> Shapes:
    """The shapes of a product with a weight of this canonical shape, (groups, out, in, *kernel)."""
    groups, outputs, inputs, *kernel = weight
    space = (None,) * len(kernel)
    return (None, groups * inputs, *space), tuple(weight), (None, groups * outputs, *space)


class QProduct(Watched):
    """One product under a recipe: `product(operation, input, weight, bias)`; `held` where one
    forward of the layer multiplies the weight several times."""

    def __init__(self, recipe: Recipe, shapes: Shapes, **own: Any) -> None:
        by_operand = dict(zip(("input", "weight", "output"), shapes, strict=True))
        by_operand["grad_output"] = by_operand["output"]
        quantizers = {
            (kind, operand): (slot.quantizer, by_operand[operand])
            for (kind, operand), slot in recipe.slots.items()
            if not slot.reused  # what is quantized in the forward needs no state of its own
        }
        super().__init__(recipe, shapes, quantizers, **own)
        self.noisy = self.noisy or recipe.noisy

    @property
    def is_off(self) -> bool:
        return self.recipe.products_off

    def backward_moves(self, slot: tuple[str, str]) -> bool:
        """A gradient's, or that of an operand which is quantized there alone."""
        return super().backward_moves(slot) or self.recipe.slots[slot].late

    def forward(
        self,
        operation: Operation,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        held: Held | None = None,
    ) -> Tensor:
        self.check("input", input)
        self.check("weight", weight)
        if bias is not None and bias.dtype not in REAL:
            self.refuse("bias", bias)
        kind = input.device.type
        autocasts = kind != "meta" and torch.is_autocast_enabled(kind)
        if not autocasts and (torch.compiler.is_compiling() or not torch_modes()):
            return self._run(operation, input, weight, bias, None, held)
        autocast = autocast_dtype(input)
        with hidden(), without_autocast(kind):
            return self._run(operation, input, weight, bias, autocast, held)

    def _run(
        self,
        operation: Operation,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        autocast: torch.dtype | None,
        held: Held | None,
    ) -> Tensor:
        probe = self.watching()
        if torch.compiler.is_compiling():
            held = None
        key, states = self.begin(input, weight, bias)
        call = Call(
            operation, self.recipe, states, self.training, autocast, probe=probe, name=self.name,
            learning=self if self.recipe.learned else None, held=held,
        )  # fmt: skip
        try:
            return apply(call, input, weight, bias, key)
        except (TypeError, ValueError) as error:
            raise located(error, f"layer {self.name!r}") from error


def recipe_names(module: nn.Module) -> str:
    """Of the products that a layer holds: the names of their recipes, each once."""
    own = [child for child in module.children() if isinstance(child, QProduct)]
    return ", ".join(dict.fromkeys(product.recipe.name for product in own))


def products_of(module: nn.Module) -> list[QProduct]:
    """The converted products of a module and all below it, in the order of the network."""
    return [child for child in module.modules() if isinstance(child, QProduct)]
