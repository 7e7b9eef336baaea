"""What a layer holds that follows a recipe, and that probes may watch."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor, nn

from quantizers import QuantizerLike

from ..autograd.capture import capturing
from ..layer_state import LayerState
from ..recipe import Recipe
from .learning import Learning
from .probe import Probe

Shape = tuple[int | None, ...]
#: of a product's input, canonical weight and output; None for a size that changes
Shapes = tuple[Shape, Shape, Shape]


class Watched(Learning):
    """The state of a layer's product, or lookup, under a recipe.

    name     its path in the model, "(model)" where the layer is the whole model
    shapes   which the state may be made from
    """

    def __init__(self, recipe: Recipe, shapes: Shapes, quantizers: Any, **own: Any) -> None:
        self.shapes = shapes
        super().__init__(quantizers, **own)
        self.recipe = recipe
        self.probe: Probe | None = None
        #: set where a monitor puts its probes at some steps
        self.monitored: object | None = None

    @property
    def is_off(self) -> bool:
        """Whether the recipe leaves it to torch."""
        raise NotImplementedError

    @property
    def weight_quantizers(self) -> list[QuantizerLike]:
        """Of its weight, in each of its products."""
        return [q for (_, operand), (q, _) in self._quantizers.items() if operand == "weight"]

    def adopt_(self, other: LayerState) -> None:
        super().adopt_(other)
        assert isinstance(other, Watched)
        self.recipe = other.recipe

    def watching(self) -> Probe | None:
        """The probe that is to see the call that begins; ValueError in a capture that would hide it
        from a monitor."""
        if self.monitored is not None and capturing():
            raise ValueError(
                f"layer {self.name!r}: it is monitored, and the replays of a CUDA graph show a "
                f"Monitor nothing; close() it before the capture"
            )
        probe = self.probe
        return probe if probe is not None and probe.watches(self.training) else None

    def check(self, operand: str, x: object) -> None:
        """TypeError for an operand that is no dense floating-point tensor."""
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.is_nested:
            self.refuse(operand, x)

    def refuse(self, operand: str, x: object) -> NoReturn:
        """The TypeError of an operand that is none."""
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


def watched_of(model: nn.Module) -> list[Watched]:
    """The converted products and lookups of a module and all below it, in the network's order."""
    return [child for child in model.modules() if isinstance(child, Watched)]
