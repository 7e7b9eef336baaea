"""A product of two quantized operands.

    product = sum over blocks of (scale_a * scale_b) * (sum within the block of a_k * b_k)

Integer elements: the inner sum is the exact integer; the epilogue is fl32(fl32(sum) * fl32(scale_a
* scale_b)), each rounding once; blocks are added in fp32 in ascending order; then the bias.  With a
floating-point operand the inner sum is accumulated in fp32 (fp64 for fp64 data); where blocks lie
along the sum, each block's sum is taken in fp64, where it is exact for formats of up to 8 bits.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from quantizers import IntFormat, QTensor
from quantizers.quantizer import as_real

from .engines.exact import Engine, Work, choose, holds
from .operations import Kind, Operation

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
    zero_point = _lifted(operation, kind, "a", a, a.zero_point, total.dim())
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
                f"use a granularity that leaves this axis whole (per_block has rest='whole'; "
                f"axis {split} may be cut into blocks of more than 1), or give this product its "
                f"own quantizer: GradInput(weight=...), GradWeight(input=...)"
            )
    return q.block[split]


def _names(kind: Kind) -> tuple[str, str]:
    first = "input" if kind == "forward" else "grad_output"
    return first, "input" if kind == "grad_weight" else "weight"


def _lifted(
    operation: Operation, kind: Kind, operand: Operand, q: QTensor, compact: Tensor, dims: int
) -> Tensor:
    """The operand's scale or zero point, broadcastable to the product."""
    spread = q.spread(compact)
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
        first, count = start // q.block[axis], -(-length // q.block[axis])
        scale = None if scale is None else scale.narrow(axis, first, count)
        zero_point = None if zero_point is None else zero_point.narrow(axis, first, count)
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
    taken = b.elements.shape[operation.split_axis(kind, "b", b.elements.dim())]
    if taken != count:
        raise ValueError(
            f"{_names(kind)[0]} of {kind} has shape {tuple(a.elements.shape)}: {count} to sum "
            f"along axis {cut} (of each group), where the {_names(kind)[1]} takes {taken}"
        )
    step = min(step_a, step_b, max(count, 1))
    if step < count and any(s < count and s % step for s in (step_a, step_b)):
        raise ValueError(
            f"{kind}: blocks of {step_a} and {step_b} along the sum (axis {cut} of "
            f"{_names(kind)[0]}) do not nest; make one a multiple of the other"
        )
    channels = a.elements.shape[cut]
    if channels != count and (step < count or step_a < channels):
        raise ValueError(
            f"{_names(kind)[0]} of {kind}: blocks along the sum (axis {cut} of {channels}) need "
            f"groups=1; leave the axis whole"
        )
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
            _lifted(operation, kind, operand, q, q.scale, part.dim())
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
    """grad_output times b's scale, and b without it, where the product cannot apply it itself.

    A scale that differs from term to term of a sum cannot multiply the result; where it varies
    only along axes that grad_output shares (the output's own), it multiplies grad_output before
    that is quantized.  Otherwise both come back unchanged.
    """
    if b.scale is None:
        return grad_output, b
    dims = b.elements.dim()
    operand: Operand = "b" if kind == "grad_input" else "a"  # of the forward
    split = operation.split_axis(kind, "b", dims)
    varying = {
        axis
        for axis, (size, block) in enumerate(zip(b.elements.shape, b.block, strict=True))
        if block < size
    }
    summed = varying - operation.kept(kind, "b", dims)
    needed = any(axis != split or b.block[axis] == 1 for axis in summed)
    if not needed or not varying <= operation.kept("forward", operand, dims):
        return grad_output, b
    lifted = _lifted(operation, "forward", operand, b, b.scale, grad_output.dim())
    return grad_output * lifted, QTensor(b.elements, None, b.zero_point, b.format, b.block)
