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
Operand = Literal["a", "b"]
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
    def kept(self, kind: Kind, operand: Operand, dims: int) -> set[int]:
        """Axes of an operand (with `dims` axes) that the product does not sum over."""

    @abstractmethod
    def split_axis(self, kind: Kind, operand: Operand, dims: int) -> int:
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
    def lift(self, kind: Kind, operand: Operand, scale: Tensor) -> Tensor:
        """A scale that is constant along the summed axes, broadcastable to the product.

        scale: one entry or axis length along each axis of its operand.
        """

    def narrow(self, kind: Kind, operand: Operand, x: Tensor, start: int, length: int) -> Tensor:
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

    def kept(self, kind: Kind, operand: Operand, dims: int) -> set[int]:
        if kind == "grad_weight":
            return {dims - 1}
        if operand == "a":
            return set(range(dims - 1))
        return {0, 1} if kind == "forward" else {0, 2}

    def split_axis(self, kind: Kind, operand: Operand, dims: int) -> int:
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

    def lift(self, kind: Kind, operand: Operand, scale: Tensor) -> Tensor:
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

    def kept(self, kind: Kind, operand: Operand, dims: int) -> set[int]:
        if kind == "forward":
            return {0, 1}
        if kind == "grad_input":
            return {0, 1} if operand == "a" else {0, 2}
        return {0, 2}

    def split_axis(self, kind: Kind, operand: Operand, dims: int) -> int:
        if kind == "forward" or (kind == "grad_input" and operand == "a"):
            return 2
        return 1

    def terms(self, kind: Kind, a: Sequence[int], b: Sequence[int]) -> tuple[int, int]:
        return a[self.split_axis(kind, "a", 3)], 1

    def multiplications(self, kind: Kind, a: Sequence[int], b: Sequence[int]) -> int:
        return a[1] * a[2] * b[3 - self.split_axis(kind, "b", 3)]

    def lift(self, kind: Kind, operand: Operand, scale: Tensor) -> Tensor:
        rows_first = operand == "a" and kind != "grad_weight"
        if rows_first or (operand == "b" and kind != "forward"):
            return scale
        return scale.transpose(1, 2)
