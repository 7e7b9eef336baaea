"""A product of two quantized operands.

    product = sum over blocks of (scale_a * scale_b) * (sum within the block of a_k * b_k)

Integer elements: the inner sum is the exact integer; the epilogue is fl32(fl32(sum) * fl24(scale_a
* scale_b)), each rounding once (fl24: fl32 without its ends, so that two small scales may meet a
large sum); blocks are added in fp32 in ascending order; then the bias.  With a
floating-point operand the inner sum is accumulated in fp32 (fp64 for fp64 data); where blocks lie
along the sum, each block's sum is taken in fp64, where it is exact for formats of up to 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from quantizers import QTensor

from ..autograd.selective import shown
from ..recipe import OPERANDS
from .engines.choice import ENGINES
from .engines.engine import Engine, Note
from .engines.epilogue import Epilogue
from .engines.plain_convolution import full_precision
from .engines.scales import times
from .integers import Served, corrected, direct, serving
from .operands import PLACES, Shape, lifted, lifted_shape
from .operations import Kind, Operand, Operation
from .plan import Sketch, planned, sketches

#: what serves a product with an operand that is not integer
FLOAT = "torch (float operand)"


def _block(
    operation: Operation,
    kind: Kind,
    a: QTensor,
    b: QTensor,
    like: Tensor,
    engines: tuple[Engine, ...],
    served: Served | None,
    epilogue: Epilogue,
    note: Note | None,
    blocks: int,
    unit: torch.dtype | None,
) -> Tensor:
    """The sum of one block through the epilogue: fp32 or fp64."""
    if served is not None:
        engine, work = served
        if note is not None:
            note(engine.name)
        if work.sums:
            total = corrected(operation, kind, a, b, like, engines, engine, work)
            return epilogue(operation, total)
        left = a.elements if work.zero_point or a.zero_point is None else direct(a)
        right = b.elements if b.zero_point is None else direct(b)
        zero_point = a.zero_point if work.zero_point else None
        return engine.product(
            operation, kind, left, right, like, work, zero_point=zero_point, epilogue=epilogue
        )
    if note is not None:
        note(FLOAT)
    left, right = a.unshifted(), b.unshifted()
    wide = torch.promote_types(torch.promote_types(left.dtype, right.dtype), torch.float32)
    if blocks > 1 and wide == torch.float32:
        sums = shown(operation.product, kind, left.double(), right.double(), like).float()
    else:
        inner = unit or wide
        with full_precision() if left.is_cuda else nullcontext():
            sums = shown(operation.product, kind, left.to(inner), right.to(inner), like).to(wide)
    return epilogue.applied_(operation, sums)


def _check_scales(operation: Operation, kind: Kind, operand: Operand, q: Sketch) -> int:
    """Block size of an operand along the cut axis; ValueError where a scale cannot be honoured."""
    dims = len(q.shape)
    kept, split = operation.kept(kind, operand, dims), operation.split_axis(kind, operand, dims)
    if q.scale is None:
        return q.shape[split]
    for axis, (size, block) in enumerate(zip(q.shape, q.block, strict=True)):
        along_sum = axis not in kept
        if block < size and along_sum and (axis != split or block == 1):
            raise ValueError(
                f"{OPERANDS[kind][operand == 'b']} of {kind}: its scale varies along axis {axis} "
                f"of shape {tuple(q.shape)}, which {kind} sums over, in blocks of {block}; "
                f"use a granularity that leaves this axis whole (per_block has rest='whole'; "
                f"axis {split} may be cut into blocks of more than 1), or give this product its "
                f"own quantizer: GradInput(weight=...), GradWeight(input=...)"
            )
    return q.block[split]


class _Plan(NamedTuple):
    """What a product's shapes, formats and engines decide.

    cuts     the blocks along the sum: see `_cuts`
    shapes   of the two scales: see `lifted_shape`
    served   by what, where it is exact and not cut: see `serving`
    """

    cuts: list[tuple[int, int]]
    shapes: tuple[Shape, Shape]
    served: Served | None


@planned
def _plan(
    operation: Operation,
    kind: Kind,
    a: Sketch,
    b: Sketch,
    device_type: str,
    engines: tuple[Engine, ...],
) -> _Plan:
    cuts = _cuts(operation, kind, a, b)
    shapes = lifted_shape(operation, kind, "a", a), lifted_shape(operation, kind, "b", b)
    served = None if cuts else serving(operation, kind, a, b, device_type, engines)
    return _Plan(cuts, shapes, served)


def _cuts(operation: Operation, kind: Kind, a: Sketch, b: Sketch) -> list[tuple[int, int]]:
    """(start, length) of each block along the sum; none for a sum that is not cut.

    Raises ValueError where a scale varies along the sum otherwise, or the sums' lengths differ.
    """
    first, second = OPERANDS[kind]
    cut = operation.split_axis(kind, "a", len(a.shape))
    step_a = _check_scales(operation, kind, "a", a)
    step_b = _check_scales(operation, kind, "b", b)
    count, _ = operation.terms(kind, a.shape, b.shape)
    taken = b.shape[operation.split_axis(kind, "b", len(b.shape))]
    if taken != count:
        raise ValueError(
            f"{first} of {kind} has shape {tuple(a.shape)}: {count} to sum "
            f"along axis {cut} (of each group), where the {second} takes {taken}"
        )
    step = min(step_a, step_b, max(count, 1))
    if step < count and any(s < count and s % step for s in (step_a, step_b)):
        raise ValueError(
            f"{kind}: blocks of {step_a} and {step_b} along the sum (axis {cut} of "
            f"{first}) do not nest; make one a multiple of the other"
        )
    channels = a.shape[cut]
    if channels != count and (step < count or step_a < channels):
        raise ValueError(
            f"{first} of {kind}: blocks along the sum (axis {cut} of {channels}) need "
            f"groups=1; leave the axis whole"
        )
    if step >= count:
        return []
    return [(start, min(step, count - start)) for start in range(0, count, step)]


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
    unit: torch.dtype | None = None,
) -> Tensor:
    """One of the three products of two quantized operands; see the module's definition.

    like: shape and strides of what is differentiated (any dtype); bias: (out channels), for the
    forward; note: is told the engine that serves each block, or FLOAT; unit: the dtype in
    which a product with a floating-point operand runs (None: fp32, or fp64 for fp64 elements), its
    result rounded to it.  -> fp32, or fp64 where an operand's elements are.  Raises ValueError
    where a scale varies along the sum.
    """
    device_type = a.elements.device.type
    units = engines or ENGINES[device_type]
    cuts, shapes, served = _plan(operation, kind, *sketches(a, b), device_type, units)
    if not cuts:
        epilogue = Epilogue(_scale(operation, kind, a, b, shapes), bias)
        return _block(operation, kind, a, b, like, units, served, epilogue, note, 1, unit)
    total: Tensor | None = None
    for start, length in cuts:
        left = _narrow(operation, kind, "a", a, start, length)
        right = _narrow(operation, kind, "b", b, start, length)
        served = serving(operation, kind, *sketches(left, right), device_type, units)
        epilogue = Epilogue(_scale(operation, kind, left, right, (None, None)))
        part = _block(
            operation, kind, left, right, like, units, served, epilogue, note, len(cuts), unit
        )  # fmt: skip
        total = part if total is None else total.add_(part)
    assert total is not None
    return Epilogue(bias=bias).applied_(operation, total)


def _scale(
    operation: Operation, kind: Kind, a: QTensor, b: QTensor, shapes: Sequence[Shape]
) -> Tensor | None:
    """The product of the two scales (see `engines.scales`), broadcastable to the product.

    shapes: of the two, see `lifted_shape`.
    """
    found: Tensor | None = None
    for operand, q, shape in zip(PLACES, (a, b), shapes, strict=True):
        scale = q.scale
        if scale is None:
            continue
        if shape is None and scale.numel() == 1:
            shape = ()
        own = lifted(operation, kind, operand, q, scale) if shape is None else scale.reshape(shape)
        found = own.float() if found is None else times(found, own.float())
    return found
