"""Quantized convolutions, transposed or not."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..products.convolution import Convolution, pair
from ..products.module import QProduct, Shapes, shapes_of
from ..products.plan import planned
from .linear import OneLine


@planned
def convolution(
    kernel: tuple[int, ...],
    stride: int | tuple[int, ...],
    padding: str | int | tuple[int, ...],
    dilation: int | tuple[int, ...],
    groups: int,
    mode: str,
    *more: Any,
) -> tuple[Convolution, list[int]]:
    """A layer's convolution, and what must be padded before it because it cannot do that itself
    (F.pad's order; [] for nothing).  more: whether it is transposed, and the output padding."""
    space = len(kernel)
    dilation = pair(dilation, space)
    if padding == "valid":
        sides = [(0, 0)] * space
    elif padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        sides = [(p, p) for p in pair(padding, space)]  # type: ignore[arg-type]
    own = mode == "zeros" and all(left == right for left, right in sides)
    inner = tuple(left for left, _ in sides) if own else (0,) * space
    outer = [] if own else [side for left, right in reversed(sides) for side in (left, right)]
    if not any(outer):
        outer = []
    return Convolution(pair(stride, space), inner, dilation, groups, *more), outer


def operation_of(module: nn.modules.conv._ConvNd) -> Convolution:
    """A layer's convolution, without the padding that it cannot do itself."""
    more: tuple[Any, ...] = ()
    if module.transposed:
        more = True, tuple(pair(module.output_padding, len(module.kernel_size)))
    operation, _ = convolution(*QConvNd._window(module), *more)  # type: ignore[arg-type]
    return operation


class QConvNd(OneLine, nn.modules.conv._ConvNd):
    product: QProduct

    def forward(self, input: Tensor) -> Tensor:
        if self.product.recipe.products_off or not self.in_channels:  # of nothing: torch's
            plain: Tensor = super().forward(input)
            return plain
        operation, sides = convolution(*self._window())
        batched = self._batched(input)
        if sides:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            batched = F.pad(batched, sides, mode=mode)
        output: Tensor = self.product(operation, batched, self.weight, self.bias)
        return output if output.dim() == input.dim() else output.squeeze(0)

    def _window(self) -> Any:
        found: Any = self.kernel_size, self.stride, self.padding, self.dilation
        if list in map(type, found):  # which torch takes, too
            found = [tuple(own) if isinstance(own, list) else own for own in found]
        return *found, self.groups, self.padding_mode

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

    @staticmethod
    def products(module: nn.modules.conv._ConvNd) -> dict[str, Shapes]:
        """The products of the layer: child name -> shapes."""
        groups = module.groups
        sizes = groups, module.out_channels // groups, module.in_channels // groups
        return {"product": shapes_of((*sizes, *module.kernel_size))}


class QConv1d(QConvNd, nn.Conv1d):
    """torch.nn.Conv1d whose three products follow a recipe."""


class QConv2d(QConvNd, nn.Conv2d):
    """torch.nn.Conv2d whose three products follow a recipe."""


class QConv3d(QConvNd, nn.Conv3d):
    """torch.nn.Conv3d whose three products follow a recipe."""


class QConvTransposeNd(QConvNd):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self.product.recipe.products_off:
            plain: Tensor = super(QConvNd, self).forward(input, output_size)
            return plain
        space = len(self.kernel_size)
        batched = self._batched(input)
        output_padding = self._output_padding(  # type: ignore[operator]
            batched, output_size, list(self.stride), list(self.padding), list(self.kernel_size),
            space, list(self.dilation),
        )  # fmt: skip
        operation, _ = convolution(*self._window(), True, tuple(output_padding))
        output: Tensor = self.product(operation, batched, self.weight, self.bias)
        return output if input.dim() == space + 2 else output.squeeze(0)


class QConvTranspose1d(QConvTransposeNd, nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d whose three products follow a recipe."""


class QConvTranspose2d(QConvTransposeNd, nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d whose three products follow a recipe."""


class QConvTranspose3d(QConvTransposeNd, nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d whose three products follow a recipe."""
