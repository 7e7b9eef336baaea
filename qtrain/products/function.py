"""The one autograd Function over a layer's three products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quantizers import QTensor
from quantizers.devices.numbers import in_dtype
from quantizers.ranges.rules import State

from ..autograd.contexts import without_autocast, without_grad
from ..autograd.differentiated import once
from ..autograd.flops import counted
from ..autograd.function_output import function_output
from ..autograd.selective import shown
from ..recipe import OPERANDS, OUTPUT
from .blockwise.matrices import turned
from .call import Call, located
from .operands import folded
from .operations import Kind
from .outputs import handed_on, passed_back
from .parts import Seen, joined, tensors_of, unpacked
from .probe import Computed
from .product import Product


class Products(torch.autograd.Function):
    """A layer's forward product on quantized operands, and its two backward products.

    forward takes (call, output dtype, noise key, input, weight, bias, then what `packed` makes of:
    input and weight as the forward takes them, weight as grad_input takes it, input as grad_weight
    takes it; None for the latter two where they are the forward's, or quantized in the
    backward pass only); then what quantizers learn, of `Recipe.learned` in turn, for its gradients
    alone.  Saved: the operands the two backward products need; the float input,
    weight or output only for these and for a quantizer with its own backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        call: Call,
        dtype: torch.dtype,
        key: Tensor | None,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        meta: tuple[tuple[Any, ...] | None, ...],
        *tensors: Tensor,
    ) -> Tensor:
        ctx.call = call
        operands: Any = unpacked(meta, tensors)
        xq, wq, backward_w, backward_x = operands
        if xq.elements is None:
            xq = xq._replace(elements=input)
        slots = call.recipe.slots
        if (slot := slots["grad_input", "weight"]).late:
            backward_w = wq if slot.of_forward else QTensor(weight)
        if (slot := slots["grad_weight", "input"]).late:
            backward_x = xq if slot.of_forward else QTensor(input)
        backward_w, backward_x = backward_w or wq, backward_x or xq
        like, by = xq.elements, None
        if "forward" in call.recipe.cut:
            like, shape = input, call.operation.canonical(weight).shape
            by = call.matrices("forward", input.shape, shape, input.shape)
        if call.is_off("forward", xq, wq, by):
            wide = torch.promote_types(xq.elements.dtype, wq.elements.dtype)
            shift = None if bias is None else bias.to(wide)
            output = shown(call.operation.native, xq.elements.to(wide), wq.elements.to(wide), shift)
        else:
            shape = call.operation.canonical(weight).shape
            with counted(call.operation.product, "forward", input.shape, shape, input):
                output = call.multiply("forward", xq, wq, like, by, key, bias=bias)
        if call.recipe.centered["forward"]:
            canonical = call.operation.canonical(weight)
            output = call.corrected("forward", output, input, canonical, input)
        computed, handed = output, None
        if call.recipe.activation is not None:
            output, handed = handed_on(call, computed, key)
        if call.probe is not None:
            canonical = call.operation.canonical(weight)
            call.probe.result(
                Computed(
                    call.operation, "forward", input, canonical, (xq, wq), bias, output, dtype,
                    handed,
                )
            )  # fmt: skip

        learned = call.recipe.learned  # whose gradients need the operands', too
        wants_input = ctx.needs_input_grad[3] or ("forward", "input") in learned
        wants_weight = ctx.needs_input_grad[4] or ("forward", "weight") in learned
        ctx.wants = wants_input, wants_weight
        keep_input = wants_input and not slots["forward", "input"].straight_through
        keep_weight = wants_weight and not slots["forward", "weight"].straight_through
        keep_output = OUTPUT in slots and not slots[OUTPUT].straight_through
        ctx.save_for_backward(
            key if wants_input or wants_weight else None,
            input if keep_input else None,
            weight if keep_weight else None,
            computed if keep_output else None,
            *tensors_of(backward_w if wants_input else None, backward_x if wants_weight else None),
        )
        ctx.given = len(tensors)
        ctx.meta = backward_w[3:5], backward_x[3:5]
        ctx.snapshots = (
            call.snapshot("input") if keep_input else None,
            call.snapshot("weight") if keep_weight else None,
            call.snapshot("output") if keep_output else None,
        )
        # not saved: what a probe looks at must neither change what a checkpointed segment saves nor
        # forbid a later operation in place
        probing = call.probe is not None
        ctx.seen = (
            Seen(weight) if probing and wants_input else None,
            Seen(input) if probing and wants_weight else None,
        )
        ctx.input = tuple(like.shape), tuple(like.stride())
        ctx.weight = tuple(weight.shape), tuple(weight.stride())
        ctx.dtypes = input.dtype, weight.dtype, None if bias is None else bias.dtype
        output = in_dtype(output, dtype)
        return function_output(output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        with without_grad(), without_autocast(grad_output.device.type):
            try:
                grads = _backward(ctx, grad_output)
            except (TypeError, ValueError) as error:
                raise located(error, f"layer {ctx.call.name!r}") from error
        if torch.is_grad_enabled():
            grads = tuple(None if g is None else once(g, grad_output) for g in grads)
        rest = [None] * (ctx.given - len(grads[3:]))
        return (None, None, None, *grads[:3], None, *rest, *grads[3:])


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of input, weight and bias, then of what is learned."""
    call: Call = ctx.call
    operation = call.operation
    key, input, weight, computed, *tensors = ctx.saved_tensors
    wants_input, wants_weight = ctx.wants
    wants_bias = ctx.needs_input_grad[5]
    learned: dict[tuple[str, str], State] = {}
    input_state, weight_state, output_state = ctx.snapshots
    if computed is not None:
        grad_output = passed_back(call, grad_output, computed, output_state)
    input_like = grad_output.new_empty_strided(*ctx.input)
    weight_like = grad_output.new_empty_strided(*ctx.weight)
    canonical = None if weight is None else operation.canonical(weight)
    grad_input = grad_weight = grad_bias = None

    def one(
        kind: Kind,
        saved: QTensor,
        shape: Sequence[int],
        like: Tensor,
        seen: Seen | None,
        dtype: torch.dtype,
    ) -> Tensor:
        operand = OPERANDS[kind][1]
        slot = call.recipe.slots[kind, operand]
        by = call.matrices(kind, grad_output.shape, shape, like.shape)
        x: Tensor | None = None
        if slot.late:
            x = saved.elements
            if slot.of_forward:
                x = call.value(operand, saved, shape)
            elif operand == "weight":
                x = operation.canonical(x)
            saved = call.quantize(kind, operand, x, key, by=by)
        elif slot.cut:
            saved = turned(saved)
        factor, bare = None, saved
        if saved.scale is not None and saved.scale.numel() > 1 and not slot.cut:
            factor, bare = folded(Product(operation, kind), grad_output, saved)
        gq = call.quantize(kind, "grad_output", grad_output, key, factor, by)
        if call.recipe.slots[kind, "grad_output"].learns:
            taken = grad_output if factor is None else grad_output * factor
            learned[kind, "grad_output"] = call.taught(kind, gq, taken, key)
        if call.is_off(kind, gq, bare, by):
            wide = torch.promote_types(gq.elements.dtype, bare.elements.dtype)
            result = operation.product(kind, gq.elements.to(wide), bare.elements.to(wide), like)
        else:
            with counted(operation.product, kind, grad_output.shape, shape, like):
                result = call.multiply(kind, gq, bare, like, by, key)
        if x is not None and call.recipe.centered[kind]:
            result = call.corrected(kind, result, grad_output, x, like)
        if call.probe is not None and seen is not None:
            other = seen.unchanged()
            if other is not None and kind == "grad_input":
                other = operation.canonical(other)
            operands = gq, saved
            call.probe.result(
                Computed(operation, kind, grad_output, other, operands, None, result, dtype)
            )
        return result

    if wants_input:
        saved = joined(tensors[:4], ctx.meta[0])
        shape = operation.canonical(weight_like).shape
        grad_input = one("grad_input", saved, shape, input_like, ctx.seen[0], ctx.dtypes[0])
        if input_state is not None:
            grad_input, learned["forward", "input"] = call.own_backward(
                "input", grad_input, input, input_state, key
            )
        grad_input = in_dtype(grad_input, ctx.dtypes[0])
    if wants_weight:
        saved = joined(tensors[4:], ctx.meta[1])
        like = operation.canonical(weight_like)
        grad = one("grad_weight", saved, ctx.input[0], like, ctx.seen[1], ctx.dtypes[1])
        if weight_state is not None:
            assert canonical is not None
            grad, learned["forward", "weight"] = call.own_backward(
                "weight", grad, canonical, weight_state, key
            )
        grad_weight = in_dtype(operation.raw(grad), ctx.dtypes[1])
    if wants_bias:
        if "grad_weight" in call.recipe.off:
            canonical_like = operation.canonical(weight_like)
            grad_bias = operation.torch_grad_bias(grad_output, input_like, canonical_like)
        else:  # on the CPU that call would compute a whole grad_weight as well
            grad_bias = operation.grad_bias(grad_output)
        grad_bias = in_dtype(grad_bias, ctx.dtypes[2])
    found: list[Tensor | None] = []
    for slot in call.recipe.learned:
        found += [learned.get(slot, {}).get(name) for name in call.learned(*slot)]
    return (grad_input, grad_weight, grad_bias, *found)
