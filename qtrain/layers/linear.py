"""Quantized layers: torch's own modules with another forward.

A converted layer keeps its parameters, buffers, hooks and parametrizations; it gains one child,
`product`, that holds its recipe and state.  Its class is a subclass of the layer's own class.
"""

from __future__ import annotations

from typing import NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantizers import IntFormat, Quantizer, checks, nearest_even
from quantizers.protocol import straight_through

from ..autograd.selective import hidden
from ..layer_state import LayerState, autocast_dtype, rank, without_autocast
from ..products.call import Call, Probe, apply, located
from ..products.operations import Convolution, Linear, Operation, pair
from ..recipe import SLOTS, Recipe

Shape = tuple[int | None, ...]
#: of a product's input, canonical weight and output; None for a size that changes
Shapes = tuple[Shape, Shape, Shape]


class QProduct(LayerState):
    """One product under a recipe: `product(operation, input, weight, bias)`.

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
        by_operand = dict(zip(("input", "weight", "grad_output"), shapes, strict=True))
        quantizers = {
            (kind, operand): (recipe.slot(kind, operand), by_operand[operand])
            for kind, operand in SLOTS
            # an operand that is the forward's, quantized there, needs no state of its own
            if kind == "forward" or operand == "grad_output" or not recipe.reuses(kind, operand)
        }
        super().__init__(quantizers, name=name, seed=seed, stream=stream, device=device)
        self.recipe = recipe
        self.probe: Probe | None = None

    def forward(
        self, operation: Operation, input: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        for operand, x in (("input", input), ("weight", weight)):
            if not isinstance(x, Tensor) or not x.is_floating_point() or x.is_nested:
                self.refuse(operand, x)
        if bias is not None and bias.dtype not in checks.REAL:
            self.refuse("bias", bias)
        autocast = autocast_dtype(input)
        probe = self.probe
        if probe is not None and not probe.watches(self.training):
            probe = None
        with hidden(), without_autocast(input.device.type):
            key, states = self.begin(input, weight, bias)
            call = Call(
                operation, self.recipe, states, self.training, rank(), autocast,
                probe=probe, name=self.name,
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


def products_of(module: nn.Module) -> list[QProduct]:
    """The converted products of a module and all below it, in the order of the network."""
    return [child for child in module.modules() if isinstance(child, QProduct)]


class QuantizedLayer(Protocol):
    """A module whose product runs under a recipe."""

    product: QProduct

    def extra_repr(self) -> str: ...


class _OneLine:
    """Shows a converted layer in one line: torch's own, and the name of its recipe."""

    def __repr__(self: QuantizedLayer) -> str:
        return f"{type(self).__name__}({self.extra_repr()}; {self.product.recipe.name})"


class QLinear(_OneLine, nn.Linear):
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


class _QConv(_OneLine, nn.modules.conv._ConvNd):
    product: QProduct

    def forward(self, input: Tensor) -> Tensor:
        if self.product.recipe.products_off or not self.in_channels:  # of nothing: torch's
            plain: Tensor = super().forward(input)
            return plain
        space = len(self.kernel_size)
        batched, padding = self._padded(self._batched(input))
        operation = Convolution(
            pair(self.stride, space), padding, pair(self.dilation, space), self.groups
        )
        output: Tensor = self.product(operation, batched, self.weight, self.bias)
        return output if input.dim() == space + 2 else output.squeeze(0)

    def _batched(self, input: Tensor) -> Tensor:
        if not isinstance(input, Tensor) or input.is_nested:
            self.product.refuse("input", input)
        space = len(self.kernel_size)
        if input.dim() not in (space + 1, space + 2):
            raise ValueError(
                f"layer {self.product.name!r}: expected {space + 1} or {space + 2} axes "
                f"(batch, channels, {space} spatial), got shape {tuple(input.shape)}"
            )
        return input if input.dim() == space + 2 else input.unsqueeze(0)

    def _padded(self, input: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The input with any padding that a convolution cannot do itself, and what remains."""
        space = len(self.kernel_size)
        if self.padding == "valid":
            return input, (0,) * space
        if self.padding == "same":
            total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            sides = [(t // 2, t - t // 2) for t in total]
        else:
            sides = [(p, p) for p in pair(self.padding, space)]  # type: ignore[arg-type]
        if self.padding_mode == "zeros" and all(left == right for left, right in sides):
            return input, tuple(left for left, _ in sides)
        flat = [side for left, right in reversed(sides) for side in (left, right)]
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(input, flat, mode=mode), (0,) * space

    @staticmethod
    def products(module: nn.modules.conv._ConvNd) -> dict[str, Shapes]:
        """The products of the layer: child name -> shapes."""
        groups, space = module.groups, (None,) * len(module.kernel_size)
        weight = (groups, module.out_channels // groups, module.in_channels // groups)
        shapes = (
            (None, module.in_channels, *space),
            (*weight, *module.kernel_size),
            (None, module.out_channels, *space),
        )
        return {"product": shapes}


def takes_extremes(layer: nn.Module) -> bool:
    """Whether a converted layer needs of its input no more than integers nearest to it, over a
    range that its extremes give: see norm_computation.Deferred."""
    if not isinstance(layer, QLinear | _QConv) or layer.product.probe is not None:
        return False
    recipe = layer.product.recipe
    quantizer = recipe.forward.input
    if isinstance(layer, _QConv):
        padding = layer.padding
        if layer.padding_mode != "zeros" or (isinstance(padding, str) and padding != "valid"):
            return False
    return (
        type(quantizer) is Quantizer
        and isinstance(quantizer.format, IntFormat)
        and quantizer.by_extremes
        and quantizer.rounding == nearest_even
        and straight_through(quantizer)
        and recipe.reuses("grad_weight", "input")
    )


class QConv1d(_QConv, nn.Conv1d):
    """torch.nn.Conv1d whose three products follow a recipe."""


class QConv2d(_QConv, nn.Conv2d):
    """torch.nn.Conv2d whose three products follow a recipe."""


class QConv3d(_QConv, nn.Conv3d):
    """torch.nn.Conv3d whose three products follow a recipe."""


class _QConvTranspose(_QConv):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self.product.recipe.products_off:
            plain: Tensor = super(_QConv, self).forward(input, output_size)
            return plain
        space = len(self.kernel_size)
        batched = self._batched(input)
        output_padding = self._output_padding(  # type: ignore[operator]
            batched, output_size, list(self.stride), list(self.padding), list(self.kernel_size),
            space, list(self.dilation),
        )  # fmt: skip
        operation = Convolution(
            pair(self.stride, space),
            pair(self.padding, space),  # type: ignore[arg-type]
            pair(self.dilation, space),
            self.groups,
            True,
            tuple(output_padding),
        )
        output: Tensor = self.product(operation, batched, self.weight, self.bias)
        return output if input.dim() == space + 2 else output.squeeze(0)


class QConvTranspose1d(_QConvTranspose, nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d whose three products follow a recipe."""


class QConvTranspose2d(_QConvTranspose, nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d whose three products follow a recipe."""


class QConvTranspose3d(_QConvTranspose, nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d whose three products follow a recipe."""
