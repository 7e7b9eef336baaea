"""The bilinear operations a layer is made of, and the geometry of their three products.

Each operation turns (input, weight) into an output and has three products:

    forward      output      = input       (x) weight
    grad_input   grad_input  = grad_output (x) weight
    grad_weight  grad_weight = grad_output (x) input

Weights are seen in one canonical view, (groups, out, in, *kernel), transposed convolutions and
matrix products included; granularity and scales of weights refer to it.  The products are computed
on plain floating-point tensors; nothing here knows about quantization.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

Kind = Literal["forward", "grad_input", "grad_weight"]
KINDS: tuple[Kind, ...] = ("forward", "grad_input", "grad_weight")


class Operation(ABC):
    """One bilinear operation.  In every product, `a` is the first operand, `b` the second; a
    weight operand is given in the canonical view, and so is the result of grad_weight."""

    #: whether the second operand is data, not a parameter
    weight_is_data: ClassVar[bool] = False

    @abstractmethod
    def canonical(self, weight: Tensor) -> Tensor:
        """(groups, out, in, *kernel) view of the layer's weight."""

    @abstractmethod
    def raw(self, canonical: Tensor) -> Tensor:
        """The layer's own layout of a canonical weight."""

    @abstractmethod
    def product(self, kind: Kind, a: Tensor, b: Tensor, like: Tensor) -> Tensor:
        """One of the three products; `like` has the shape and strides of what is differentiated
        (input for grad_input, canonical weight for grad_weight; unused for forward)."""

    @abstractmethod
    def native(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's own aten call.  weight: canonical."""

    def grad_bias(self, grad_output: Tensor) -> Tensor:
        """Gradient of the bias: the sum of grad_output over all but the channels."""
        return grad_output.flatten(0, -2).sum(0)

    def torch_grad_bias(
        self, grad_output: Tensor, input_like: Tensor, weight_like: Tensor
    ) -> Tensor:
        """The same, by the aten call of torch's own backward: its bits."""
        return self.grad_bias(grad_output)

    @abstractmethod
    def along_channels(self, bias: Tensor) -> Tensor:
        """A bias (out channels), broadcastable to the output."""

    @abstractmethod
    def kept(self, kind: Kind, operand: Literal["a", "b"], dims: int) -> set[int]:
        """Axes of an operand (with `dims` axes) that the product does not sum over."""

    @abstractmethod
    def split_axis(self, kind: Kind, operand: Literal["a", "b"], dims: int) -> int:
        """The summed axis along which a product may be cut into partial sums."""

    @abstractmethod
    def terms(self, kind: Kind, a: Sequence[int], b: Sequence[int]) -> tuple[int, int]:
        """(indices along the split axis, products summed per index at most) of operands of these
        shapes."""

    @abstractmethod
    def multiplications(self, kind: Kind, a: Sequence[int], b: Sequence[int]) -> int:
        """Multiplications at stride 1 in a product of operands of these shapes: in each matrix of
        a batch; in a convolution's grad_weight for each position of the kernel."""

    @abstractmethod
    def lift(self, kind: Kind, operand: Literal["a", "b"], scale: Tensor) -> Tensor:
        """A scale that is constant along the summed axes, broadcastable to the product.

        scale: one entry or axis length along each axis of its operand.
        """

    def narrow(
        self, kind: Kind, operand: Literal["a", "b"], x: Tensor, start: int, length: int
    ) -> Tensor:
        """The slice of an operand at [start, start + length) of the split axis."""
        return x.narrow(self.split_axis(kind, operand, x.dim()), start, length)

    def channel_axis(self, dims: int) -> int:
        """The axis of an output's channels, among `dims`."""
        return dims - 1


@dataclass(frozen=True)
class Linear(Operation):
    """input (*, in), weight (out, in) -> (*, out), at least one leading axis."""

    def canonical(self, weight: Tensor) -> Tensor:
        return weight.unsqueeze(0)

    def raw(self, canonical: Tensor) -> Tensor:
        return canonical.squeeze(0)

    def product(self, kind: Kind, a: Tensor, b: Tensor, like: Tensor) -> Tensor:
        if kind == "forward":
            return torch.nn.functional.linear(a, b.squeeze(0))
        if kind == "grad_input":
            return a @ b.squeeze(0)
        return (a.flatten(0, -2).t() @ b.flatten(0, -2)).unsqueeze(0)

    def native(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.nn.functional.linear(input, weight.squeeze(0), bias)

    def along_channels(self, bias: Tensor) -> Tensor:
        return bias

    def kept(self, kind: Kind, operand: Literal["a", "b"], dims: int) -> set[int]:
        if kind == "grad_weight":
            return {dims - 1}
        if operand == "a":
            return set(range(dims - 1))
        return {0, 1} if kind == "forward" else {0, 2}

    def split_axis(self, kind: Kind, operand: Literal["a", "b"], dims: int) -> int:
        if kind == "grad_weight":
            return 0
        if operand == "a":
            return dims - 1
        return 2 if kind == "forward" else 1

    def terms(self, kind: Kind, a: Sequence[int], b: Sequence[int]) -> tuple[int, int]:
        if kind == "grad_weight":
            return a[0], math.prod(a[1:-1])
        return a[-1], 1

    def multiplications(self, kind: Kind, a: Sequence[int], b: Sequence[int]) -> int:
        return math.prod(a) * (b[-1] if kind == "grad_weight" else b[1] * b[2] // max(a[-1], 1))

    def lift(self, kind: Kind, operand: Literal["a", "b"], scale: Tensor) -> Tensor:
        if kind == "grad_weight":
            return scale.reshape((1, -1, 1) if operand == "a" else (1, 1, -1))
        return scale if operand == "a" else scale.reshape(-1)


@dataclass(frozen=True)
class BatchedMatmul(Operation):
    """input (batch, rows, in), weight (batch, out, in) -> (batch, rows, out)."""

    weight_is_data = True

    def canonical(self, weight: Tensor) -> Tensor:
        return weight

    def raw(self, canonical: Tensor) -> Tensor:
        return canonical

    def product(self, kind: Kind, a: Tensor, b: Tensor, like: Tensor) -> Tensor:
        if kind == "forward":
            return a @ b.transpose(1, 2)
        if kind == "grad_input":
            return a @ b
        return a.transpose(1, 2) @ b

    def native(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert bias is None
        return input @ weight.transpose(1, 2)

    def along_channels(self, bias: Tensor) -> Tensor:
        raise AssertionError("a matrix product has no bias")

    def kept(self, kind: Kind, operand: Literal["a", "b"], dims: int) -> set[int]:
        if kind == "forward":
            return {0, 1}
        if kind == "grad_input":
            return {0, 1} if operand == "a" else {0, 2}
        return {0, 2}

    def split_axis(self, kind: Kind, operand: Literal["a", "b"], dims: int) -> int:
        if kind == "forward" or (kind == "grad_input" and operand == "a"):
            return 2
        return 1

    def terms(self, kind: Kind, a: Sequence[int], b: Sequence[int]) -> tuple[int, int]:
        return a[self.split_axis(kind, "a", 3)], 1

    def multiplications(self, kind: Kind, a: Sequence[int], b: Sequence[int]) -> int:
        return a[1] * a[2] * b[3 - self.split_axis(kind, "b", 3)]

    def lift(self, kind: Kind, operand: Literal["a", "b"], scale: Tensor) -> Tensor:
        rows_first = operand == "a" and kind != "grad_weight"
        if rows_first or (operand == "b" and kind != "forward"):
            return scale
        return scale.transpose(1, 2)


@dataclass(frozen=True)
class Convolution(Operation):
    """A convolution or transposed convolution of any number of spatial axes, input (N, C, *S)."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def canonical(self, weight: Tensor) -> Tensor:
        grouped = weight.view(self.groups, weight.shape[0] // self.groups, *weight.shape[1:])
        return grouped.transpose(1, 2) if self.transposed else grouped

    def raw(self, canonical: Tensor) -> Tensor:
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
            list(self.dilation), self.transposed, list(self._output_padding), self.groups,
            [wanted == 0, wanted == 1, wanted == 2],
        )  # fmt: skip
        grad: Tensor = grads[wanted]
        return grad

    def scattered(self, size: Sequence[int], kernel: Sequence[int]) -> list[int]:
        """The spatial size of a transposed convolution's output."""
        return [
            (n - 1) * s - 2 * p + d * (k - 1) + extra + 1
            for n, k, s, p, d, extra in zip(
                size, kernel, self.stride, self.padding, self.dilation, self._output_padding,
                strict=True,
            )
        ]  # fmt: skip

    @property
    def _output_padding(self) -> tuple[int, ...]:
        return self.output_padding or (0,) * len(self.stride)

    def product(self, kind: Kind, a: Tensor, b: Tensor, like: Tensor) -> Tensor:
        if kind == "forward":
            if self.transposed and 0 in (size := self.scattered(a.shape[2:], b.shape[3:])):
                # aten refuses it in fp64, and calls an output that is not transposed too small
                return a.new_empty((a.shape[0], b.shape[0] * b.shape[1], *size))
            return self.native(_settled(a), self.canonical(_settled(self.raw(b))), None)
        if kind == "grad_input":
            return self._backward(a, torch.empty_like(like, dtype=a.dtype), self.raw(b), 0)
        weight = self.raw(like)
        last = is_channels_last(weight)
        # strides of its own: aten refuses, in fp64, those of another tensor along a length of 1
        layout = channels_last(weight.dim()) if last else torch.preserve_format
        weight = torch.empty_like(weight, dtype=a.dtype, memory_format=layout)
        return self.canonical(self._backward(a, b, weight, 1))

    def native(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.convolution(
            input, self.raw(weight), bias, self.stride, self.padding, self.dilation,
            self.transposed, self._output_padding, self.groups,
        )  # fmt: skip

    def grad_bias(self, grad_output: Tensor) -> Tensor:
        return grad_output.sum((0, *range(2, grad_output.dim())))

    def torch_grad_bias(
        self, grad_output: Tensor, input_like: Tensor, weight_like: Tensor
    ) -> Tensor:
        return self._backward(grad_output, input_like, self.raw(weight_like), 2)

    def along_channels(self, bias: Tensor) -> Tensor:
        return bias.view(1, -1, *[1] * len(self.stride))

    def kept(self, kind: Kind, operand: Literal["a", "b"], dims: int) -> set[int]:
        if kind == "grad_weight":
            return {1}
        if operand == "a":
            return {0}
        return {0, 1} if kind == "forward" else {0, 2}

    def split_axis(self, kind: Kind, operand: Literal["a", "b"], dims: int) -> int:
        if kind == "grad_weight":
            return 0
        if operand == "a":
            return 1
        return 2 if kind == "forward" else 1

    def narrow(
        self, kind: Kind, operand: Literal["a", "b"], x: Tensor, start: int, length: int
    ) -> Tensor:
        axis = self.split_axis(kind, operand, x.dim())
        if operand == "b" or kind == "grad_weight" or self.groups == 1:
            return x.narrow(axis, start, length)
        grouped: Tensor = x.unflatten(1, (self.groups, -1)).narrow(2, start, length)
        return grouped.flatten(1, 2)

    def terms(self, kind: Kind, a: Sequence[int], b: Sequence[int]) -> tuple[int, int]:
        if kind == "grad_weight":
            # each weight meets every position of the smaller of the two maps at most once
            return a[0], math.prod(b[2:] if self.transposed else a[2:])
        return a[1] // self.groups, math.prod(b[3:])

    def multiplications(self, kind: Kind, a: Sequence[int], b: Sequence[int]) -> int:
        if kind == "grad_weight":
            return math.prod(a) * b[1] // self.groups
        each = 1 if kind == "forward" else 2  # of b's axes, the one that is not summed
        return math.prod(a) * b[each] * math.prod(b[3:])

    def lift(self, kind: Kind, operand: Literal["a", "b"], scale: Tensor) -> Tensor:
        space = [1] * len(self.stride)
        if kind == "grad_weight":
            if scale.numel() == 1:
                return scale.reshape([1, 1, 1, *space])
            per_group = scale.reshape(self.groups, -1)
            shape = [self.groups, -1, 1] if operand == "a" else [self.groups, 1, -1]
            return per_group.reshape(shape + space)
        if operand == "a":
            return scale
        if scale.numel() == 1:
            return scale.reshape([1, 1, *space])
        scale = scale.expand(self.groups, *scale.shape[1:])
        return scale.reshape([1, -1, *space])

    def channel_axis(self, dims: int) -> int:
        return 1


def channels_last(dims: int) -> torch.memory_format:
    """The layout of so many axes, 4 or 5, whose second is the innermost."""
    return torch.channels_last if dims == 4 else torch.channels_last_3d


def is_channels_last(x: Tensor) -> bool:
    """As torch's convolutions decide how their result lies in memory."""
    if x.dim() not in (4, 5):
        return False
    return x.is_contiguous(memory_format=channels_last(x.dim())) and not x.is_contiguous()


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
