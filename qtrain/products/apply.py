"""A layer's forward under a recipe: its operands quantized, then multiplied."""

from __future__ import annotations

import torch
from torch import Tensor

from ..autograd.contexts import without_grad
from .call import Call
from .function import Products
from .parts import packed


def apply(
    call: Call, input: Tensor, weight: Tensor, bias: Tensor | None, key: Tensor | None
) -> Tensor:
    """output = input (x) weight + bias under call.recipe; differentiable once.

    input: as the operation takes it; weight: the layer's own layout.  -> the input's dtype, or
    autocast's, or, where the recipe keeps outputs narrow, its activation's.
    """
    operation, recipe = call.operation, call.recipe
    differentiable = call.training or torch.is_grad_enabled()
    with without_grad():
        canonical = operation.canonical(weight)
        by = call.matrices("forward", input.shape, canonical.shape, input.shape)
        xq = call.quantize("forward", "input", input, key, by=by)
        wq = call.quantize("forward", "weight", canonical, key, by=by)
        backward_w, backward_x = wq, xq
        if differentiable:
            slot = recipe.slots["grad_input", "weight"]
            if not (slot.reused or slot.late):
                x = call.value("weight", wq, canonical.shape) if slot.of_forward else canonical
                backward_w = call.quantize("grad_input", "weight", x, key)
            slot = recipe.slots["grad_weight", "input"]
            if not (slot.reused or slot.late):
                x = call.value("input", xq, input.shape) if slot.of_forward else input
                backward_x = call.quantize("grad_weight", "input", x, key)
    # a tensor is passed once: what the backward reuses, and an input that stays itself, are None
    operands = (
        xq._replace(elements=None) if xq.elements is input else xq,  # type: ignore[arg-type]
        wq,
        None if backward_w is wq else backward_w,
        None if backward_x is xq else backward_x,
    )
    meta, tensors = packed(operands)
    dtype = call.autocast or input.dtype
    dtype = recipe.stored(dtype) if recipe.narrow else dtype
    if recipe.learned:
        tensors += [each for slot in recipe.learned for each in call.learned(*slot).values()]
    output: Tensor = Products.apply(  # type: ignore[no-untyped-call]
        call, dtype, key, input, weight, bias, meta, *tensors
    )
    return output
