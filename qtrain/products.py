"""A product of two quantized operands.

    product = sum over blocks of (scale_a * scale_b) * (sum within the block of a_k * b_k)

Integer elements: the inner sum is the exact integer; the epilogue is fl32(fl32(sum) * fl32(scale_a
* scale_b)), each rounding once; blocks are added in fp32 in ascending order; then the bias.  With a
floating-point operand the inner sum is accumulated in fp32 (fp64 for fp64 data); where blocks lie
along the sum, each block's sum is taken in fp64, where it is exact for formats of up to 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from quantizers import IntFormat, QTensor
from quantizers.quantizer import as_real

from .engines.exact import choose
from .engines.work import Engine, Epilogue, Span, Work, holds
from .operations import Kind, Operation

Operand = Literal["a", "b"]
Note = Callable[[str], None]
#: what serves a product with an operand that is not integer
FLOAT = "torch (float operand)"


def _span(q: QTensor) -> Span:
    assert isinstance(q.format, IntFormat)
    return Span(q.format.low, q.format.high)


def _direct_span(q: QTensor) -> Span:
    low, high = _span(q)
    return Span(low, high) if q.zero_point is None else Span(low - high, high - low)


def _direct(q: QTensor) -> Tensor:
    """Integer elements without their zero point."""
    if q.zero_point is None:
        return q.elements
    dtype = torch.int16 if _direct_span(q).magnitude < 2**15 else torch.int32
    return q.elements.to(dtype) - q.spread(q.zero_point).to(dtype)


def _centre(q: QTensor) -> int:
    return 0 if q.zero_point is None else (sum(_span(q)) + 1) // 2


def _centred_span(q: QTensor) -> Span:
    low, high = _span(q)
    return Span(low - _centre(q), high - _centre(q))


def _centred(q: QTensor) -> Tensor:
    """Integer elements about 0, in no more bits than the format's."""
    centre = _centre(q)
    if centre == 0:
        return q.elements
    if centre == 128 and q.elements.dtype == torch.uint8:
        return (q.elements ^ 128).view(torch.int8)
    narrow = torch.int8 if _centred_span(q).within(-128, 127) else torch.int32
    return (q.elements.to(torch.int32) - centre).to(narrow)


def _uniform(operation: Operation, kind: Kind, operand: Operand, q: QTensor) -> bool:
    """Whether all terms of a sum have the same zero point."""
    if q.zero_point is None or q.zero_point.numel() == 1:
        return True
    sizes = q.elements.shape
    varying = {axis for axis, size in enumerate(sizes) if q.block[axis] < size}
    return varying <= operation.kept(kind, operand, len(sizes))


def _exact(
    operation: Operation,
    kind: Kind,
    a: QTensor,
    b: QTensor,
    like: Tensor,
    engines: tuple[Engine, ...] | None,
    epilogue: Epilogue,
    note: Note | None,
) -> Tensor:
    """The exact integer sums of one block through the epilogue, fp32.

    A zero point is taken by the engine, or from products of ones with centred elements, or from
    the elements themselves, which widens them: whichever the first engine supports, in this order.
    """
    size = operation.terms(kind, a.elements, b.elements)
    forms = [Work(*size, _direct_span(a), _direct_span(b), sums=False)]
    if a.zero_point is not None or b.zero_point is not None:
        if _uniform(operation, kind, "a", a) and _uniform(operation, kind, "b", b):
            forms.insert(0, Work(*size, _centred_span(a), _centred_span(b)))
        if b.zero_point is None and a.zero_point is not None and a.zero_point.numel() == 1:
            forms.insert(0, Work(*size, _span(a), _span(b), zero_point=True, sums=False))
    engine, work = choose(operation, kind, forms, a.elements.device.type, engines)
    if note is not None:
        note(engine.name)
    if work.sums:
        return epilogue(operation, _corrected(operation, kind, a, b, like, engines, engine, work))
    zero_point = a.zero_point if work.zero_point else None
    left = a.elements if work.zero_point else _direct(a)
    return engine.product(
        operation, kind, left, _direct(b), like, work, zero_point=zero_point, epilogue=epilogue
    )


def _corrected(
    operation: Operation,
    kind: Kind,
    a: QTensor,
    b: QTensor,
    like: Tensor,
    engines: tuple[Engine, ...] | None,
    engine: Engine,
    work: Work,
) -> Tensor:
    """The exact integer sums, zero points taken out by products of ones.

    With z the zero point less the centre, and a, b about their centres:
    sum (a - z_a)(b - z_b) = sum a b - z_a sum 1 b - z_b sum a 1 + z_a z_b sum 1 1, where ones have
    one entry along the axes that the product keeps, and meet the same padding.
    """
    left, right = _centred(a), _centred(b)
    total = engine.product(operation, kind, left, right, like, work)
    # |a| + |z| is at most twice the larger half of the format
    widths = [2 * max(span.magnitude, 1) for span in (work.a, work.b)]
    dtype = holds(work.count * work.per_index * widths[0] * widths[1])
    total = total.to(dtype)
    ones = [operation.ones(kind, operand, q.elements) for operand, q in _pairs(a, b)]
    shifts = [
        None if q.zero_point is None
        else _lifted(operation, kind, operand, q, q.zero_point - _centre(q)).to(dtype)
        for operand, q in _pairs(a, b)
    ]  # fmt: skip

    def add(left: Tensor, right: Tensor, a: Span, b: Span, factor: Tensor) -> None:
        nonlocal total
        forms = [Work(work.count, work.per_index, a, b)]
        unit, chosen = choose(operation, kind, forms, left.device.type, engines)
        shape = operation.like(kind, like, left, right)
        part = unit.product(operation, kind, left, right, shape, chosen).to(dtype)
        total = total + factor * operation.spread(part, total)

    one = Span(1, 1)
    if shifts[0] is not None:
        add(ones[0], right, one, work.b, -shifts[0])
    if shifts[1] is not None:
        add(left, ones[1], work.a, one, -shifts[1])
    if shifts[0] is not None and shifts[1] is not None:
        add(ones[0], ones[1], one, one, shifts[0] * shifts[1])
    return total


def _real(q: QTensor) -> Tensor:
    """Floating-point elements without their zero point."""
    values = q.elements.to(q.values_dtype)
    if q.zero_point is not None:
        own = values is not q.elements
        values = values.sub_(q.spread(q.zero_point)) if own else q.unshifted()
    return as_real(values)


def _block(
    operation: Operation,
    kind: Kind,
    a: QTensor,
    b: QTensor,
    like: Tensor,
    engines: tuple[Engine, ...] | None,
    epilogue: Epilogue,
    note: Note | None,
    blocks: int,
) -> Tensor:
    """The sum of one block through the epilogue: fp32 or fp64."""
    if isinstance(a.format, IntFormat) and isinstance(b.format, IntFormat):
        return _exact(operation, kind, a, b, like, engines, epilogue, note)
    if note is not None:
        note(FLOAT)
    left, right = _real(a), _real(b)
    wide = torch.promote_types(left.dtype, right.dtype)
    if blocks > 1 and wide == torch.float32:
        sums = operation.product(kind, left.double(), right.double(), like).float()
    else:
        sums = operation.product(kind, left.to(wide), right.to(wide), like)
    return epilogue.applied_(operation, sums)


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
    operation: Operation, kind: Kind, operand: Operand, q: QTensor, compact: Tensor
) -> Tensor:
    """The operand's scale or zero point, broadcastable to the product."""
    spread = q.spread(compact)
    if spread.numel() > 1:
        kept = operation.kept(kind, operand, spread.dim())
        sizes = [s if i in kept else 1 for i, s in enumerate(q.elements.shape)]
        spread = spread.expand(sizes)
    return operation.lift(kind, operand, spread)


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
    *,
    bias: Tensor | None = None,
    note: Note | None = None,
) -> Tensor:
    """One of the three products of two quantized operands; see the module's definition.

    like: shape and strides of what is differentiated (any dtype); bias: (out channels), for the
    forward; note: is told the engine that serves each block, or FLOAT.  -> fp32, or fp64 where an
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
        part = _block(
            operation, kind, left, right, like, engines,
            Epilogue(_scale(operation, kind, left, right), bias if len(starts) == 1 else None),
            note, len(starts),
        )  # fmt: skip
        total = part if total is None else total.add_(part)
    assert total is not None
    if bias is not None and len(starts) > 1:
        total = Epilogue(bias=bias).applied_(operation, total)
    return total


def _scale(operation: Operation, kind: Kind, a: QTensor, b: QTensor) -> Tensor | None:
    """fl32 of the two scales' product, broadcastable to the result of the product."""
    scales = [
        _lifted(operation, kind, operand, q, q.scale)
        for operand, q in _pairs(a, b)
        if q.scale is not None
    ]
    if not scales:
        return None
    return scales[0] * scales[1] if len(scales) == 2 else scales[0]


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
    lifted = _lifted(operation, "forward", operand, b, b.scale)
    return grad_output * lifted, QTensor(b.elements, None, b.zero_point, b.format, b.block)
