"""Convolutions, transposed or not, and the geometry of their three products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .operations import Kind, Operation


@dataclass(frozen=True)
class Convolution(Operation):
    """A convolution or transposed convolution of any number of spatial axes, input (N, C, *S)."""

    labels = "ncx", "goik", "ndy"

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        padding = self.output_padding or (0,) * len(self.stride)
        object.__setattr__(self, "output_padding", padding)

    def canonical(self, weight: Tensor) -> Tensor:
        if self.groups == 1 and not self.transposed:
            return weight.unsqueeze(0)
        grouped = weight.view(self.groups, weight.shape[0] // self.groups, *weight.shape[1:])
        return grouped.transpose(1, 2) if self.transposed else grouped

    def raw(self, canonical: Tensor) -> Tensor:
        if self.groups == 1 and not self.transposed:
            return canonical.squeeze(0)
        if self.transposed:
            canonical = canonical.transpose(1, 2)
        return canonical.flatten(0, 1)

    def _backward(self, grad_output: Tensor, input: Tensor, weight: Tensor, wanted: int) -> Tensor:
        """The gradient of the input (0), the weight (1) or the bias (2)."""
        if not (grad_output.numel() and input.numel() and weight.numel()):
            # aten refuses some of those
            if wanted == 2:
                return self.grad_bias(grad_output)
            return torch.zeros_like((input, weight)[wanted], dtype=grad_output.dtype)
        bias = weight.shape[1] * self.groups if self.transposed else weight.shape[0]
        grads = torch.ops.aten.convolution_backward(
            grad_output, input, weight, [bias], list(self.stride), list(self.padding),
            list(self.dilation), self.transposed, list(self.output_padding), self.groups,
            [wanted == 0, wanted == 1, wanted == 2],
        )  # fmt: skip
        grad: Tensor = grads[wanted]
        return grad

    def scattered(self, size: Sequence[int], kernel: Sequence[int]) -> list[int]:
        """The spatial size of a transposed convolution's output."""
        return [
            (n - 1) * s - 2 * p + d * (k - 1) + extra + 1
            for n, k, s, p, d, extra in zip(
                size, kernel, self.stride, self.padding, self.dilation, self.output_padding,
                strict=True,
            )
        ]  # fmt: skip

    def product(self, kind: Kind, a: Tensor, b: Tensor, like: Tensor) -> Tensor:
        if kind == "forward":
            if self.transposed and 0 in (size := self.scattered(a.shape[2:], b.shape[3:])):
                # aten refuses it in fp64, and calls an output that is not transposed too small
                return a.new_empty((a.shape[0], b.shape[0] * b.shape[1], *size))
            return self._forward(_settled(a), _settled(self.raw(b)), None)
        if kind == "grad_input":
            return self._backward(a, torch.empty_like(like, dtype=a.dtype), self.raw(b), 0)
        weight = self.raw(like)
        last = is_channels_last(weight)
        # strides of its own: aten refuses, in fp64, those of another tensor along a length of 1
        layout = LAST[weight.dim()] if last else torch.preserve_format
        weight = torch.empty_like(weight, dtype=a.dtype, memory_format=layout)
        if self._overruns(b, weight):
            row, column = self.stride
            return replace(self, stride=(1, 1)).product(kind, a, b[..., ::row, ::column], like)
        return self.canonical(self._backward(a, b, weight, 1))

    def _overruns(self, input: Tensor, weight: Tensor) -> bool:
        """Whether oneDNN may write past its memory (its issue 6035) in the weight's gradient.

        It does for a channels-last input of fewer channels than a vector register has floats, of
        which a kernel of one pixel takes every so many: for that gradient alone, the same as that
        of the pixels taken, without strides.
        """
        if self.transposed or self.stride == (1, 1) or weight.shape[2:] != (1, 1):
            return False
        last = is_channels_last(input) or is_channels_last(weight)
        few = input.device.type == "cpu" and input.shape[1] < 16
        return last and few and self.padding == (0, 0)

    def native(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._forward(input, self.raw(weight), bias)

    def _forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.convolution(
            input, weight, bias, self.stride, self.padding, self.dilation,
            self.transposed, self.output_padding, self.groups,
        )  # fmt: skip

    def grad_bias(self, grad_output: Tensor) -> Tensor:
        return grad_output.sum((0, *range(2, grad_output.dim())))

    def torch_grad_bias(
        self, grad_output: Tensor, input_like: Tensor, weight_like: Tensor
    ) -> Tensor:
        return self._backward(grad_output, input_like, self.raw(weight_like), 2)

    def along_channels(self, bias: Tensor) -> Tensor:
        return bias.view(1, -1, *[1] * len(self.stride))

    def gives_channels_last(self, a: Tensor, weight: Tensor) -> bool:
        """Whether torch would lay the product of a with a canonical weight so."""
        return is_channels_last(a) or is_channels_last(self.raw(weight))

    def channel_axis(self, dims: int) -> int:
        return 1


#: how tensors of so many axes lie where their second is the innermost; of three there is one way
LAST = {3: torch.contiguous_format, 4: torch.channels_last, 5: torch.channels_last_3d}


def is_channels_last(x: Tensor) -> bool:
    """As torch's convolutions decide how their result lies in memory."""
    last = LAST.get(x.dim())
    return last is not None and x.is_contiguous(memory_format=last) and not x.is_contiguous()


def _settled(x: Tensor) -> Tensor:
    """x, with one channel in volumes, in plain layout.

    Where the stride of the one channel, which says nothing, is that of a channels-last tensor,
    torch 2.13's fp32 convolution on the CPU reads memory that is not x's.
    """
    if x.dim() == 5 and x.shape[1] == 1 and x.stride(1) != math.prod(x.shape[2:]):
        return x.clone(memory_format=torch.contiguous_format)
    return x


def pair(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    """`count` integers from one integer or a sequence, as torch's layers accept them."""
    return (value,) * count if isinstance(value, int) else tuple(int(v) for v in value)
