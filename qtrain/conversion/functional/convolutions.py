"""Convolutions whose weight the caller holds, as weight-standardised ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ...layers.convolution import convolution
from .calling import Calling


def _convolution(
    call: Calling, input: Tensor, weight: Tensor, bias: Tensor | None, groups: int, window: Any,
    transposed: bool = False,
) -> Any:  # fmt: skip
    space = weight.dim() - 2
    if not weight.numel() or input.dim() not in (space + 1, space + 2):
        return call.plain()  # torch says what is wrong
    outer, inner, *kernel = weight.shape
    sizes = (groups, inner, outer // groups) if transposed else (groups, outer // groups, inner)
    layer = call.layer("conv_transpose" if transposed else "conv", (*sizes, *kernel), weight)
    if layer is None:
        return call.plain()
    operation, sides = convolution(tuple(kernel), *_tuples(window[:3]), groups, *window[3:])
    batched = input if input.dim() == space + 2 else input.unsqueeze(0)
    output: Tensor = layer(operation, F.pad(batched, sides) if sides else batched, weight, bias)
    return output if output.dim() == input.dim() else output.squeeze(0)


def _tuples(values: Sequence[Any]) -> list[Any]:
    return [tuple(x) if isinstance(x, list | tuple) else x for x in values]


def conv(
    call: Calling, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Any:  # fmt: skip
    """F.conv1d, F.conv2d, F.conv3d."""
    return _convolution(call, input, weight, bias, groups, (stride, padding, dilation, "zeros"))


def conv_transpose(
    call: Calling, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
    padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Any:  # fmt: skip
    """F.conv_transpose1d, 2d, 3d."""
    extra = output_padding
    space = weight.dim() - 2
    extra = (extra,) * space if isinstance(extra, int) else tuple(extra)
    window = (
        stride,
        padding,
        dilation,
        "zeros",
        True,
        extra if len(extra) == space else extra * space,
    )
    return _convolution(call, input, weight, bias, groups, window, True)
