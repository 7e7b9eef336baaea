"""Gradients through an operand's quantizer: its own and those of what it learns."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from quantizers import QTensor, QuantizerLike
from quantizers.ranges.rules import State


def passed(
    quantizer: QuantizerLike,
    grad: Tensor,
    x: Tensor,
    state: State,
    key: Tensor | None,
    learned: Iterable[str],
) -> tuple[Tensor, State]:
    """(the gradient of x, {name: that of a learned tensor}), by the quantizer's own backward or,
    where it learns and has none, through the operations of its call, whose rounding must let
    gradients pass.

    grad: x's shape; state, key: what x was quantized with; learned: names in the state.  TypeError
    or ValueError for a backward that returns anything else.
    """
    names = list(learned)
    own = getattr(quantizer, "backward", None)
    if names and own is None:
        return _through(quantizer, grad, x, state, key, names)
    found = own(grad, x, state)  # type: ignore[misc]
    if not names:
        return _of_shape(found, grad, ""), {}
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], dict):
        raise TypeError(
            f"backward returned {type(found).__name__}, need (the gradient of x, "
            f"{{name: gradient}}) for {', '.join(names)}"
        )
    if set(found[1]) != set(names):
        raise ValueError(
            f"backward returned gradients of {sorted(found[1])}, need those of {sorted(names)}"
        )
    return _of_shape(found[0], grad, ""), {
        name: _of_shape(found[1][name], state[name], f" for {name}") for name in names
    }


def of_error(
    quantizer: QuantizerLike,
    q: QTensor,
    x: Tensor,
    state: State,
    key: Tensor | None,
    learned: Iterable[str],
) -> State:
    """The gradients, with respect to what a gradient's quantizer learns, of 1/2 |q - x|^2 / |x|^2:
    no loss depends on how a gradient is rounded, so it is taught to keep it.  0 for an x of 0."""
    wide = x.double()
    size = wide.square().sum()
    error = (q.dequantize().double() - wide) / torch.where(size == 0, float("inf"), size)
    return passed(quantizer, error.to(torch.promote_types(x.dtype, torch.float32)), x, state, key,
                  learned)[1]  # fmt: skip


def _through(
    quantizer: QuantizerLike,
    grad: Tensor,
    x: Tensor,
    state: State,
    key: Tensor | None,
    names: list[str],
) -> tuple[Tensor, State]:
    with torch.enable_grad():
        leaves = {name: state[name].detach().requires_grad_() for name in names}
        operand = x.detach().requires_grad_()
        q = quantizer(operand, state={**state, **leaves}, key=key, training=False)
        value = q.elements.to(torch.promote_types(q.elements.dtype, torch.float32))
        if q.zero_point is not None:
            value = value - q.spread(q.zero_point)
        for factor in (q.scale, q.outer):
            if factor is not None:
                value = value * (factor if factor.numel() == 1 else q.spread(factor))
        wanted = {"the operand": operand, **leaves}
        found: dict[str, Tensor | None] = dict.fromkeys(wanted)
        if value.requires_grad:
            grads = torch.autograd.grad(
                value, list(wanted.values()), grad.to(value.dtype), allow_unused=True
            )
            found = dict(zip(wanted, grads, strict=True))
    reached = {name: each for name, each in found.items() if each is not None}
    if lost := [name for name in wanted if name not in reached]:
        raise ValueError(
            f"no gradient reaches {', '.join(lost)}: give the quantizer a backward, or let its "
            f"operations be differentiable, x + (x.round() - x).detach() in the place of "
            f"x.round(), and its elements floating point"
        )
    return reached.pop("the operand").to(grad.dtype), reached


def _of_shape(found: object, like: Tensor, whose: str) -> Tensor:
    if not isinstance(found, Tensor) or found.shape != like.shape:
        got = tuple(found.shape) if isinstance(found, Tensor) else found
        raise ValueError(f"backward returned {got}{whose}, need a {tuple(like.shape)} tensor")
    return found
