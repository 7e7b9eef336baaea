"""A product of two quantized operands, and the one autograd Function over a layer's three.

    product = sum over blocks of (scale_a * scale_b) * (sum within the block of a_k * b_k)

Integer elements: the inner sum is the exact integer; the epilogue is fl32(fl32(sum) * fl32(scale_a
* scale_b)), each rounding once; blocks are added in fp32 in ascending order; then the bias.  With a
floating-point operand the inner sum is accumulated in fp32 (fp64 for fp64 data); where blocks lie
along the sum, each block's sum is taken in fp64, where it is exact for formats of up to 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from quantizers import IntFormat, Off, QTensor, fold, round_to
from quantizers.quantizer import as_real, needs_key, straight_through
from quantizers.ranges import State

from .engines.exact import Engine, Work, choose, holds
from .operations import Kind, Operation
from .recipe import SLOTS, Recipe

Operand = Literal["a", "b"]


def _unshifted(q: QTensor) -> tuple[Tensor, int]:
    """Integer elements without their zero point, and the largest magnitude they can have."""
    assert isinstance(q.format, IntFormat)
    if q.zero_point is None:
        return q.elements, max(-q.format.low, q.format.high)
    bound = q.format.high - q.format.low
    dtype = torch.int16 if bound < 2**15 else torch.int32
    return q.elements.to(dtype) - q.spread(q.zero_point).to(dtype), bound


def _exact(
    operation: Operation,
    kind: Kind,
    a: QTensor,
    b: QTensor,
    like: Tensor,
    engines: tuple[Engine, ...] | None,
) -> Tensor:
    """The exact integer sums of one block, zero points taken out, in a dtype that holds them."""
    assert isinstance(a.format, IntFormat)
    right, right_bound = _unshifted(b)
    count, per_index = operation.terms(kind, a.elements, b.elements)

    def multiply(left: Tensor, bound: int) -> Tensor:
        work = Work(count, per_index, bound, right_bound)
        engine = choose(work, left.device.type, engines)
        return engine.product(operation, kind, left, right, like, work)

    if a.zero_point is None or kind != "forward":
        return multiply(*_unshifted(a))
    # sum (x - z) w = sum (x - c) w + (c - z) sum w, where the last sum is the product of ones: it
    # knows the padding, costs a batch of one, and lets the codes stay within b bits.
    centre = (a.format.high + a.format.low + 1) // 2
    half = max(a.format.high - centre, centre - a.format.low)
    total = multiply(a.elements.float() - centre, half)
    ones = multiply(operation.ones(a.elements), 1)
    dtype = holds(count * per_index * (a.format.high - a.format.low) * right_bound)
    zero_point = operation.lift(kind, "a", a.zero_point, total.dim())
    return total.to(dtype) + (centre - zero_point).to(dtype) * ones.to(dtype)


def _inner(
    operation: Operation,
    kind: Kind,
    a: QTensor,
    b: QTensor,
    like: Tensor,
    engines: tuple[Engine, ...] | None,
    blocks: int,
) -> Tensor:
    """The sum of one block, before scales: fp32 or fp64."""
    if isinstance(a.format, IntFormat) and isinstance(b.format, IntFormat):
        return _exact(operation, kind, a, b, like, engines).to(torch.float32)
    left, right = as_real(a.unshifted()), as_real(b.unshifted())
    wide = torch.promote_types(left.dtype, right.dtype)
    if blocks > 1 and wide == torch.float32:
        return operation.product(kind, left.double(), right.double(), like).float()
    return operation.product(kind, left.to(wide), right.to(wide), like)


def _pairs(a: QTensor, b: QTensor) -> tuple[tuple[Operand, QTensor], tuple[Operand, QTensor]]:
    return ("a", a), ("b", b)


def _check_scales(operation: Operation, kind: Kind, operand: Operand, q: QTensor) -> int:
    """Block size of an operand along the cut axis; ValueError where a scale cannot be honoured."""
    dims = q.elements.dim()
    kept, split = operation.kept(kind, operand, dims), operation.split_axis(kind, operand, dims)
    if q.scale is None:
        return q.elements.shape[split]
    for axis, (size, block) in enumerate(zip(q.elements.shape, q.block, strict=True)):
        along_sum = axis not in kept
        if block < size and along_sum and (axis != split or block == 1):
            raise ValueError(
                f"{_names(kind)[operand == 'b']} of {kind}: its scale varies along axis {axis} of "
                f"shape {tuple(q.elements.shape)}, which {kind} sums over, in blocks of {block}; "
                f"use a granularity that leaves this axis whole or cuts axis {split} into blocks "
                f"of more than 1, or give this product its own quantizer for the operand"
            )
    return q.block[split]


def _names(kind: Kind) -> tuple[str, str]:
    first = "input" if kind == "forward" else "grad_output"
    return first, "input" if kind == "grad_weight" else "weight"


def _scale(operation: Operation, kind: Kind, operand: Operand, q: QTensor, dims: int) -> Tensor:
    """The operand's scale, broadcastable to the product."""
    assert q.scale is not None
    spread = q.spread(q.scale)
    if spread.numel() > 1:
        kept = operation.kept(kind, operand, spread.dim())
        sizes = [s if i in kept else 1 for i, s in enumerate(q.elements.shape)]
        spread = spread.expand(sizes)
    return operation.lift(kind, operand, spread, dims)


def _narrow(
    operation: Operation, kind: Kind, operand: Operand, q: QTensor, start: int, length: int
) -> QTensor:
    """One block of an operand along the cut axis."""
    axis = operation.split_axis(kind, operand, q.elements.dim())
    elements = operation.narrow(kind, operand, q.elements, start, length)
    scale, zero_point = q.scale, q.zero_point
    if q.block[axis] < q.elements.shape[axis]:
        index = start // q.block[axis]
        scale = None if scale is None else scale.narrow(axis, index, 1)
        zero_point = None if zero_point is None else zero_point.narrow(axis, index, 1)
    return QTensor(elements, scale, zero_point, q.format, q.block)


def product(
    operation: Operation,
    kind: Kind,
    a: QTensor,
    b: QTensor,
    like: Tensor,
    engines: tuple[Engine, ...] | None = None,
) -> Tensor:
    """One of the three products of two quantized operands; see the module's definition.

    like: shape and strides of what is differentiated (any dtype).  -> fp32, or fp64 where an
    operand's elements are.  Raises ValueError where a scale varies along the sum.
    """
    cut = operation.split_axis(kind, "a", a.elements.dim())
    step_a = _check_scales(operation, kind, "a", a)
    step_b = _check_scales(operation, kind, "b", b)
    count, _ = operation.terms(kind, a.elements, b.elements)
    step = min(step_a, step_b, max(count, 1))
    if step < count and any(s < count and s % step for s in (step_a, step_b)):
        raise ValueError(
            f"{kind}: blocks of {step_a} and {step_b} along the sum do not nest; make one a "
            f"multiple of the other"
        )
    if step < count and a.elements.shape[cut] != count:
        raise ValueError(f"{kind}: blocks along the sum need groups=1; leave the axis whole")
    starts = range(0, count, step) if step < count else range(1)
    total: Tensor | None = None
    for start in starts:
        left, right = a, b
        if len(starts) > 1:
            length = min(step, count - start)
            left = _narrow(operation, kind, "a", a, start, length)
            right = _narrow(operation, kind, "b", b, start, length)
        part = _inner(operation, kind, left, right, like, engines, len(starts))
        scales = [
            _scale(operation, kind, operand, q, part.dim())
            for operand, q in _pairs(left, right)
            if q.scale is not None
        ]
        if scales:
            part = part * (scales[0] * scales[1] if len(scales) == 2 else scales[0])
        total = part if total is None else total + part
    assert total is not None
    return total


def folded(
    operation: Operation, kind: Kind, grad_output: Tensor, b: QTensor
) -> tuple[Tensor, QTensor]:
    """grad_output times b's scale, and b without it, where that scale varies along the sum only.

    A scale that differs from term to term of a sum cannot multiply the result; it multiplies the
    other operand before that is quantized.  Otherwise both come back unchanged.
    """
    if b.scale is None:
        return grad_output, b
    dims = b.elements.dim()
    split = operation.split_axis(kind, "b", dims)
    varying = {
        axis
        for axis, (size, block) in enumerate(zip(b.elements.shape, b.block, strict=True))
        if block < size
    }
    kept = operation.kept(kind, "b", dims)
    shared = {0} if kind == "grad_input" else set()  # groups: kept by both operands
    if split not in varying or b.block[split] != 1 or (varying - {split} - shared) & kept:
        return grad_output, b
    spread = b.spread(b.scale)
    if kind == "grad_input":
        # the forward's scale of each output channel is a scale of grad_output's channels
        sizes = [s if axis in (0, 1) else 1 for axis, s in enumerate(b.elements.shape)]
        lifted = operation.lift("forward", "b", spread.expand(sizes), grad_output.dim())
    else:
        lifted = spread.reshape([-1 if axis == split else 1 for axis in range(dims)])
    return grad_output * lifted, QTensor(b.elements, None, b.zero_point, b.format, b.block)


class Probe(Protocol):
    """Sees every quantization and every product of a layer, for inspection."""

    def operand(self, kind: Kind, operand: str, x: Tensor, q: QTensor, folded: bool) -> None:
        """An operand before and after its quantizer; folded: times the other operand's scale."""

    def result(
        self,
        operation: Operation,
        kind: Kind,
        a: Tensor,
        b: Tensor,
        bias: Tensor | None,
        result: Tensor,
    ) -> None:
        """A product's result with the unquantized operands (weight: canonical) it stands for."""


@dataclass(frozen=True)
class Call:
    """Everything about one call of a layer that is not a tensor.

    autocast   the dtype autocast asks for, or None: operands that are not quantized take it
    """

    operation: Operation
    recipe: Recipe
    states: dict[tuple[str, str], State]
    training: bool
    rank: int = 0
    autocast: torch.dtype | None = None
    engines: tuple[Engine, ...] | None = None
    probe: Probe | None = None

    def quantize(
        self, kind: Kind, operand: str, x: Tensor, key: Tensor | None, folded: bool = False
    ) -> QTensor:
        """An operand through its slot's quantizer, with the slot's own state and noise."""
        quantizer = self.recipe.slot(kind, operand)
        slot = SLOTS.index((kind, operand))
        if isinstance(quantizer, Off) and self.autocast is not None:
            x = x.to(self.autocast)
        if key is not None and needs_key(quantizer):
            # the same weights get the same noise on every rank, data their own
            common = operand == "weight" and not self.operation.weight_is_data
            key = fold(key, slot if common else slot + len(SLOTS) * (self.rank + 1))
        q = quantizer(x, state=self.states[kind, operand], key=key, training=self.training)
        if self.probe is not None:
            self.probe.operand(kind, operand, x, q, folded)
        return q

    def own_backward(self, operand: str, grad: Tensor, x: Tensor | None) -> Tensor:
        """The gradient through the forward quantizer of an operand."""
        if x is None:
            return grad
        backward = self.recipe.slot("forward", operand).backward  # type: ignore[attr-defined]
        passed: Tensor = backward(grad, x, self.states["forward", operand])
        return passed


def _off(*operands: QTensor) -> bool:
    return all(q.format is None and q.scale is None for q in operands)


def _alike(x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(x.shape), tuple(x.stride())


class Products(torch.autograd.Function):
    """A layer's forward product on quantized operands, and its two backward products.

    forward takes (call, output dtype, noise key, input, weight, bias, formats and blocks, then
    elements, scale and zero point of: input and weight as the forward takes them, weight as
    grad_input takes it, input as grad_weight takes it; None for the latter two where they are
    the forward's).  Saved: the operands the two backward
    products need; the float input or weight only for a quantizer with its own backward.
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
        *tensors: Tensor | None,
    ) -> Tensor:
        xq, wq, backward_w, backward_x = (
            None if kept is None else QTensor(*tensors[3 * i : 3 * i + 3], *kept)  # type: ignore[arg-type]
            for i, kept in enumerate(meta)
        )
        assert xq is not None and wq is not None
        if xq.elements is None:
            xq = xq._replace(elements=input)
        backward_w, backward_x = backward_w or wq, backward_x or xq
        if _off(xq, wq):
            output = call.operation.native(xq.elements, wq.elements, bias)
        else:
            output = product(call.operation, "forward", xq, wq, xq.elements, call.engines)
            if bias is not None:
                output = call.operation.add_bias(output, bias.to(output.dtype))
        if call.recipe.activation is not None:
            output = round_to(output, call.recipe.activation)
        if call.probe is not None:
            canonical = call.operation.canonical(weight)
            call.probe.result(call.operation, "forward", input, canonical, bias, output)

        wants_input, wants_weight = ctx.needs_input_grad[3:5]
        keep_input = wants_input and not straight_through(call.recipe.slot("forward", "input"))
        keep_weight = wants_weight and not straight_through(call.recipe.slot("forward", "weight"))
        probing = call.probe is not None
        none = (None, None, None)
        ctx.save_for_backward(
            key if wants_input or wants_weight else None,
            input if keep_input or probing else None,
            weight if keep_weight or probing else None,
            *(backward_w[:3] if wants_input else none),
            *(backward_x[:3] if wants_weight else none),
        )
        ctx.call, ctx.meta = call, (backward_w[3:], backward_x[3:])
        ctx.keep = keep_input, keep_weight
        ctx.input, ctx.weight = _alike(input), _alike(weight)
        ctx.dtypes = input.dtype, weight.dtype, None if bias is None else bias.dtype
        return output.to(dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        with torch.no_grad(), torch.autocast(grad_output.device.type, enabled=False):
            grads = _backward(ctx, grad_output)
        if torch.is_grad_enabled():
            grads = tuple(
                None if g is None else _Once.apply(g, grad_output)  # type: ignore[no-untyped-call]
                for g in grads
            )
        return (None, None, None, *grads, *[None] * 13)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    call: Call = ctx.call
    operation = call.operation
    key, input, weight, *tensors = ctx.saved_tensors
    wants_input, wants_weight, wants_bias = ctx.needs_input_grad[3:6]
    keep_input, keep_weight = ctx.keep
    input_like = grad_output.new_empty_strided(*ctx.input)
    weight_like = grad_output.new_empty_strided(*ctx.weight)
    canonical = None if weight is None else operation.canonical(weight)
    grad_input = grad_weight = grad_bias = None

    def one(kind: Kind, saved: QTensor, like: Tensor, other: Tensor | None) -> Tensor:
        g, saved = folded(operation, kind, grad_output, saved)
        gq = call.quantize(kind, "grad_output", g, key, folded=g is not grad_output)
        if _off(gq, saved):
            wide = torch.promote_types(gq.elements.dtype, saved.elements.dtype)
            result = operation.product(kind, gq.elements.to(wide), saved.elements.to(wide), like)
        else:
            result = product(operation, kind, gq, saved, like, call.engines)
        if call.probe is not None and other is not None:
            call.probe.result(operation, kind, grad_output, other, None, result)
        return result

    if wants_input:
        saved = QTensor(*tensors[:3], *ctx.meta[0])
        grad_input = one("grad_input", saved, input_like, canonical)
        grad_input = call.own_backward("input", grad_input, input if keep_input else None)
        grad_input = grad_input.to(ctx.dtypes[0])
    if wants_weight:
        saved = QTensor(*tensors[3:], *ctx.meta[1])
        grad = one("grad_weight", saved, operation.canonical(weight_like), input)
        grad = call.own_backward("weight", grad, canonical if keep_weight else None)
        grad_weight = operation.raw(grad).to(ctx.dtypes[1])
    if wants_bias:
        grad_bias = operation.grad_bias(grad_output, input_like, operation.canonical(weight_like))
        grad_bias = grad_bias.to(ctx.dtypes[2])
    return grad_input, grad_weight, grad_bias


class _Once(torch.autograd.Function):
    """Identity on a gradient whose own derivative is refused."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, grad_output: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise RuntimeError(
            "qtrain: a quantized layer cannot be differentiated twice (double backward): the "
            "derivative of its rounded gradient is zero almost everywhere; leave the layers it "
            "passes through in full precision: overrides={name: None}"
        )


def apply(
    call: Call, input: Tensor, weight: Tensor, bias: Tensor | None, key: Tensor | None
) -> Tensor:
    """output = input (x) weight + bias under call.recipe; differentiable once.

    input: as the operation takes it; weight: the layer's own layout.  -> the input's dtype, or
    autocast's.
    """
    operation, recipe = call.operation, call.recipe
    differentiable = call.training or torch.is_grad_enabled()
    with torch.no_grad():
        canonical = operation.canonical(weight)
        xq = call.quantize("forward", "input", input, key)
        wq = call.quantize("forward", "weight", canonical, key)
        backward_w, backward_x = wq, xq
        if differentiable:
            if not recipe.reuses("grad_input", "weight"):
                backward_w = call.quantize("grad_input", "weight", canonical, key)
            if not recipe.reuses("grad_weight", "input"):
                backward_x = call.quantize("grad_weight", "input", input, key)
    # a tensor is passed once: what the backward reuses, and an input that stays itself, are None
    operands = (
        xq._replace(elements=None) if xq.elements is input else xq,  # type: ignore[arg-type]
        wq,
        None if backward_w is wq else backward_w,
        None if backward_x is xq else backward_x,
    )
    tensors = [t for q in operands for t in ((None,) * 3 if q is None else q[:3])]
    meta = tuple(None if q is None else q[3:] for q in operands)
    dtype = input.dtype if call.autocast is None else call.autocast
    output: Tensor = Products.apply(  # type: ignore[no-untyped-call]
        call, dtype, key, input, weight, bias, meta, *tensors
    )
    return output
