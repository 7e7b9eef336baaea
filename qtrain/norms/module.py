"""What every converted norm has: its recipe, its state, and its quantized operands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from quantizers import FloatFormat, Off, QuantizerLike, fold, round_to
from quantizers.protocol import quantized, straight_through
from quantizers.ranges.rules import State

from ..autograd.function_output import function_output
from ..layer_state import LayerState, Slot, rank
from .recipe import ROLES as ROLES
from .recipe import NormRecipe

#: where the memory of a norm's deviation is
DEVIATION: Slot = "norm", "deviation"
Slots = dict[Slot, tuple[QuantizerLike, Sequence[int | None]]]


def role_slots(
    recipe: NormRecipe, data: Sequence[int | None], parameter: Sequence[int | None]
) -> Slots:
    """The quantizers of a norm and the shapes of its data and its parameters, for a LayerState;
    beside them its deviation, where that has a memory."""
    shapes = {"input": data, "weight": parameter, "bias": parameter, "grad_output": data}
    slots: dict[Slot, Any] = {
        ("norm", role): (getattr(recipe, role), shapes[role]) for role in ROLES
    }
    if recipe.deviation.init_state(parameter):
        slots[DEVIATION] = recipe.deviation, parameter
    return slots


def _role_key(key: Tensor | None, role: str) -> Tensor | None:
    """A role's noise key: data differ between ranks, parameters do not."""
    if key is None:
        return None
    data = role in ("input", "grad_output")
    return fold(key, ROLES.index(role) + (len(ROLES) * (rank() + 1) if data else 0))


class QNorm(nn.Module):
    """A torch norm that follows a NormRecipe; `state` keeps noise and quantizers' states."""

    recipe: NormRecipe
    state: LayerState

    @classmethod
    def slots(cls, module: nn.Module, recipe: NormRecipe) -> Slots:
        """The quantizers of a norm of this kind and the shapes they meet: `role_slots`."""
        raise NotImplementedError

    @classmethod
    def refusal(cls, module: nn.Module, recipe: NormRecipe) -> str | None:
        """Why a norm of this kind cannot follow the recipe, or None."""
        return None

    def scale_and_shift(self) -> tuple[Tensor | None, Tensor | None]:
        """What it multiplies with, and then adds."""
        return getattr(self, "weight", None), getattr(self, "bias", None)

    def followed(self, input: Tensor, momentum: float | None) -> Tensor:
        """What torch's function of this norm returns on its input, as the recipe says.

        momentum    of running statistics, which the caller has counted
        """
        raise NotImplementedError

    def _begin(self, input: Tensor) -> tuple[Tensor | None, Mapping[Slot, State]]:
        return self.state.begin(input, *self.scale_and_shift())

    def _operands(
        self, input: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Mapping[Slot, State]]:
        """Start a forward: input, weight and bias quantized, its noise key, its states."""
        parameters = self.scale_and_shift()
        key, states = self.state.begin(input, *parameters)
        x = self._quantized("input", input, key, states)
        weight, bias = (
            None if own is None else self._quantized(role, own, key, states)
            for role, own in zip(("weight", "bias"), parameters, strict=True)
        )
        return x, weight, bias, key, states

    def _quantized(
        self, role: str, x: Tensor, key: Tensor | None, states: Mapping[Slot, State]
    ) -> Tensor:
        quantizer: QuantizerLike = getattr(self.recipe, role)
        if isinstance(quantizer, Off):
            return x
        state = states.get(("norm", role), {})
        with torch.no_grad():
            own, training = _role_key(key, role), self.state.training
            q = quantized(quantizer, x, key=own, state=state, training=training)
            value = q.dequantize()
        if not straight_through(quantizer):  # its backward sees the state of now
            state = {name: tensor.clone() for name, tensor in state.items()}
        straight: Tensor = StraightThrough.apply(x, value, quantizer, state)  # type: ignore[no-untyped-call]
        return straight

    @property
    def _plain(self) -> bool:
        """Whether the gradient that enters is not quantized.

        A quantizer of it sees the gradient of the output before that is rounded and stored.
        """
        return isinstance(self.recipe.grad_output, Off)

    def _with_quantized_gradient(
        self, output: Tensor, key: Tensor | None, states: Mapping[Slot, State]
    ) -> Tensor:
        """The output, rounded, whose gradient is quantized on its way back."""
        output = QuantizeGradient.apply(  # type: ignore[no-untyped-call]
            output,
            self.recipe.grad_output,
            _role_key(key, "grad_output"),
            states.get(("norm", "grad_output"), {}),
            self.state.training,
        )
        return self._rounded(output)

    def _rounded(self, output: Tensor) -> Tensor:
        """The output in the recipe's activation format; straight-through."""
        activation: FloatFormat | None = self.recipe.activation
        if activation is None:
            return output
        rounded: Tensor = Rounded.apply(output, activation)  # type: ignore[no-untyped-call]
        return rounded

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        torch_part: str = super().extra_repr()
        deviation = str(self.recipe.deviation)
        return f"{torch_part}; {deviation}" if torch_part else deviation


class StraightThrough(torch.autograd.Function):
    """`value`, the quantized x, with the gradient that the quantizer passes to x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, value: Tensor, quantizer: QuantizerLike, state: State | None
    ) -> Tensor:
        ctx.quantizer, ctx.state, ctx.dtype = quantizer, state, x.dtype
        ctx.save_for_backward(*(() if straight_through(quantizer) else (x,)))
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if not straight_through(ctx.quantizer):
            grad_output = ctx.quantizer.backward(grad_output, ctx.saved_tensors[0], ctx.state)
        return grad_output.to(ctx.dtype), None, None, None


class Rounded(torch.autograd.Function):
    """x rounded to a format, straight-through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fmt: FloatFormat) -> Tensor:
        return function_output(round_to(x, fmt))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return grad_output, None


class QuantizeGradient(torch.autograd.Function):
    """x, and the gradient quantized on its way back."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        quantizer: QuantizerLike,
        key: Tensor | None,
        state: State | None,
        training: bool,
    ) -> Tensor:
        ctx.quantizer, ctx.key, ctx.state, ctx.training = quantizer, key, state, training
        return x.clone()  # a view could not be written into, as by ReLU(inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        quantized = ctx.quantizer(grad_output, key=ctx.key, state=ctx.state, training=ctx.training)
        return quantized.dequantize().to(grad_output.dtype), None, None, None, None
