"""The child of a quantized layer that computes one product under a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn

from quantizers.tensor_checks import REAL

from ..autograd.capture import capturing
from ..autograd.contexts import autocast_dtype, without_autocast
from ..autograd.selective import hidden, torch_modes
from ..layer_state import LayerState
from ..recipe import Recipe
from .apply import apply
from .call import Call, located
from .held import Held
from .learning import Learning
from .operations import Operation
from .probe import Probe

Shape = tuple[int | None, ...]
#: of a product's input, canonical weight and output; None for a size that changes
Shapes = tuple[Shape, Shape, Shape]


def shapes_of(weight: Sequence[int]) -> Shapes:
    """The shapes of a product with a weight of this canonical shape, (groups, out, in, *kernel)."""
    groups, outputs, inputs, *kernel = weight
    space = (None,) * len(kernel)
    return (None, groups * inputs, *space), tuple(weight), (None, groups * outputs, *space)


class QProduct(Learning):
    """One product under a recipe: `product(operation, input, weight, bias)`; `held` where one
    forward of the layer multiplies the weight several times.

    name    its path in the model, "(model)" where the layer is the whole model
    """

    def __init__(
        self,
        recipe: Recipe,
        shapes: Shapes,
        *,
        name: str,
        seed: int,
        stream: int,
        device: torch.device,
    ) -> None:
        by_operand = dict(zip(("input", "weight", "output"), shapes, strict=True))
        by_operand["grad_output"] = by_operand["output"]
        quantizers = {
            (kind, operand): (slot.quantizer, by_operand[operand])
            for (kind, operand), slot in recipe.slots.items()
            if not slot.reused  # what is quantized in the forward needs no state of its own
        }
        self.shapes = shapes  # which the state may be made from
        super().__init__(quantizers, name=name, seed=seed, stream=stream, device=device)
        self.noisy = self.noisy or recipe.noisy
        self.recipe = recipe
        self.probe: Probe | None = None
        #: set where a monitor puts its probes at some steps
        self.monitored: object | None = None

    def adopt_(self, other: LayerState) -> None:
        super().adopt_(other)
        assert isinstance(other, QProduct)
        self.recipe = other.recipe

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
        for operand, x in (("input", input), ("weight", weight)):
            if not isinstance(x, Tensor) or not x.is_floating_point() or x.is_nested:
                self.refuse(operand, x)
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
        if self.monitored is not None and capturing():
            raise ValueError(
                f"layer {self.name!r}: it is monitored, and the replays of a CUDA graph show a "
                f"Monitor nothing; close() it before the capture"
            )
        probe = self.probe
        if probe is not None and not probe.watches(self.training):
            probe = None
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

    def refuse(self, operand: str, x: object) -> NoReturn:
        """TypeError for an operand that is no dense floating-point tensor."""
        if isinstance(x, Tensor) and x.is_nested:
            raise TypeError(
                f"layer {self.name!r}: {operand} is a nested tensor; pad it "
                f"(torch.nested.to_padded_tensor)"
            )
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"layer {self.name!r}: {operand} is {got}, need a floating-point tensor "
            f"(float16, bfloat16, float32 or float64)"
        )

    def extra_repr(self) -> str:
        return str(self.recipe)


def recipe_names(module: nn.Module) -> str:
    """Of the products that a layer holds: the names of their recipes, each once."""
    own = [child for child in module.children() if isinstance(child, QProduct)]
    return ", ".join(dict.fromkeys(product.recipe.name for product in own))


def products_of(module: nn.Module) -> list[QProduct]:
    """The converted products of a module and all below it, in the order of the network."""
    return [child for child in module.modules() if isinstance(child, QProduct)]
