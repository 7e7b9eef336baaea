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
from typing import NamedTuple

from torch import Tensor

from quantizers import IntFormat, QTensor
from quantizers.accumulators import Accumulator

from ..recipe.units import Unit
from .blockwise.matrices import matrices_of
from .blockwise.product import in_blocks
from .engines.choice import ENGINES, choose
from .engines.engine import Engine
from .engines.epilogue import Epilogue
from .engines.task import ANY, Note, Task
from .integers import Served, corrected, direct, tasks
from .operands import PLACES, Shape, is_cut, lifted, lifted_shape
from .plan import Sketch, planned, sketches
from .precision import half, significant
from .product import Product


class _Plan(NamedTuple):
    """What a product's shapes, formats and engines decide.

    shapes   of the two scales: see `lifted_shape`
    cut      whether blocks cut the sum
    served   by what; None where they do, and where an accumulator is named
    """

    shapes: tuple[Shape, Shape]
    cut: bool
    served: Served | None


@planned
def _plan(
    product: Product,
    a: Sketch,
    b: Sketch,
    device_type: str,
    engines: tuple[Engine, ...],
    unit: Unit,
) -> _Plan:
    shapes = lifted_shape(product, "a", a), lifted_shape(product, "b", b)
    cut = is_cut(product, a, b)
    if cut or isinstance(unit, Accumulator):
        return _Plan(shapes, cut, None)
    if isinstance(a.format, IntFormat) and isinstance(b.format, IntFormat):
        forms = tasks(product, a, b)
    else:
        size = product.terms(a.shape, b.shape)
        forms = [
            Task(
                product, *size, ANY, ANY, "float", sums=False, unit=unit,
                multiplications=product.multiplications(a.shape, b.shape),
                significant=significant(a.format, b.format), half=half(a.format, b.format),
            )
        ]  # fmt: skip
    return _Plan(shapes, cut, choose(forms, device_type, engines))


def multiply(
    product: Product,
    a: QTensor,
    b: QTensor,
    like: Tensor,
    engines: tuple[Engine, ...] | None = None,
    *,
    bias: Tensor | None = None,
    note: Note | None = None,
    unit: Unit = None,
    key: Tensor | None = None,
) -> Tensor:
    """A product of two quantized operands; see the module's definition.

    like: shape and strides of what is differentiated (any dtype); bias: (out channels), for the
    forward; note: is told the engine that serves each block; unit: the dtype in which a product
    with a floating-point operand runs (None: fp32, or fp64 for fp64 elements), its result rounded
    to it; or the accumulator that sums, key: of its random bits.  -> fp32, or fp64 where an
    operand's elements are.  Raises ValueError where a scale varies along the sum.
    """
    device = a.elements.device.type
    engines = engines or ENGINES[device]
    of_a, of_b = sketches(a, b)
    shapes, cut, served = _plan(product, of_a, of_b, device, engines, unit)
    if served is None:
        by = matrices_of(product, a.elements.shape, b.elements.shape, like.shape)
        own = unit if isinstance(unit, Accumulator) else None
        scales: tuple[Tensor, ...] = ()
        if not cut:
            scales = _scales(product, a, b, shapes)
            a, b = (QTensor(q.unshifted(), format=q.format) for q in (a, b))
        found = in_blocks(product, by, a, b, like, note=note, accumulator=own, key=key)
        return Epilogue(scales, bias).applied_(product.operation, found)
    engine, task = served
    if note is not None:
        note(product.kind, engine.name)
    epilogue = Epilogue(_scales(product, a, b, shapes), bias)
    if task.promise == "float":
        return engine.of_quantized(task, a, b, like, epilogue)
    if task.zero_points:
        points = a.zero_point, b.zero_point
        return engine.of_shifted(task, a.elements, b.elements, like, points, epilogue)
    if task.sums:
        return epilogue(product.operation, corrected(served, a, b, like, engines))
    left = a.elements if task.zero_point or a.zero_point is None else direct(a)
    right = b.elements if b.zero_point is None else direct(b)
    zero_point = a.zero_point if task.zero_point else None
    return engine.product(task, left, right, like, zero_point=zero_point, epilogue=epilogue)


def _scales(
    product: Product, a: QTensor, b: QTensor, shapes: Sequence[Shape]
) -> tuple[Tensor, ...]:
    """The operands' scales, broadcastable to the product but for single ones, of any axes.

    shapes: of the two, see `lifted_shape`.
    """
    found = []
    for operand, q, shape in zip(PLACES, (a, b), shapes, strict=True):
        scale = q.scale
        if scale is None:
            continue
        if scale.numel() > 1:
            scale = lifted(product, operand, q, scale) if shape is None else scale.reshape(shape)
        found.append(scale.float())
    return tuple(found)
