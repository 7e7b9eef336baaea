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

from abc import ABC, abstractmethod
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

    #: A letter for each axis of input, canonical weight and output, the same where they are summed
    #: or kept together.  "*", "x", "y", "k" stand for any number: leading axes, the space of input
    #: and output, a kernel; "c", "d" for channels, "i", "o" of each group "g".
    labels: ClassVar[tuple[str, str, str]]
    #: whether the second operand is data, not a parameter
    weight_is_data: ClassVar[bool] = False
    groups: int = 1
    #: whether the kernel moves over the output
    transposed: bool = False

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

    def along_channels(self, bias: Tensor) -> Tensor:
        """A bias (out channels), broadcastable to the output."""
        return bias

    def channel_axis(self, dims: int) -> int:
        """The axis of an output's channels, among `dims`."""
        return dims - 1


@dataclass(frozen=True)
class Linear(Operation):
    """input (*, in), weight (out, in) -> (*, out), at least one leading axis."""

    labels = "*c", "goi", "*d"

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


@dataclass(frozen=True)
class BatchedMatmul(Operation):
    """input (batch, rows, in), weight (batch, out, in) -> (batch, rows, out)."""

    labels = "nri", "noi", "nro"
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
