"""A product as one of matrices: with blocks along the sum, a transform, or an accumulator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from quantizers import QTensor
from quantizers.accumulators import Accumulator

from ...recipe import OPERANDS
from ...recipe.units import check_taken
from ..accumulated.product import accumulated_sums
from ..engines.epilogue import Epilogue
from ..engines.task import Note
from ..operands import PLACES
from ..operations import Operand
from ..product import Product
from .matrices import Matrices, Plain
from .rows import step_of
from .sums import block_sums


def in_blocks(
    product: Product,
    by: Matrices,
    a: QTensor,
    b: QTensor,
    like: Tensor,
    *,
    cut: tuple[bool, bool] = (False, False),
    bias: Tensor | None = None,
    note: Note | None = None,
    accumulator: Accumulator | None = None,
    key: Tensor | None = None,
) -> Tensor:
    """`multiply` where blocks lie along the sum, or an accumulator is named.

    Outer scales that the whole of an operand shares, or a row of a matrix that is multiplied as it
    lies, multiply the sums at the end, fl32(sum * fl24(outer_a * outer_b)); others are fl32(scale *
    outer) of each block.

    by: the product's matrices; cut: which operands are given as `by.cut` made them; key: of an
    accumulator's random bits.
    """
    if note is not None:
        note(product.kind, "block sums" if accumulator is None else str(accumulator))
    parts: Sequence[Matrices] = (by,)
    if accumulator is not None:
        for name, q in zip(OPERANDS[product.kind], (a, b), strict=True):
            elements = f"of {q.format or q.elements.dtype}"
            check_taken(product.kind, accumulator, name, q.format, elements)
        if key is None and not any(cut):  # noise is numbered through the whole
            parts = by.parts()
    sums = [_sums(product, part, a, b, cut, accumulator, key) for part in parts]
    found = sums[0] if len(sums) == 1 else torch.cat(sums, 1)
    return Epilogue(bias=bias).applied_(product.operation, by.result(found, like))


def _sums(
    product: Product,
    by: Matrices,
    a: QTensor,
    b: QTensor,
    cut: tuple[bool, bool],
    accumulator: Accumulator | None,
    key: Tensor | None,
) -> Tensor:
    """The product of matrices, scales included."""
    given = zip(PLACES, (a, b), cut, strict=True)
    one, other = (q if was else _cut(by, product, place, q) for place, q, was in given)
    _check_shapes(product, by, one, other, a.elements, b.elements)
    scales = [q.scale for q in (one, other) if q.scale is not None]
    whole = accumulator is not None and all(scale.numel() == 1 for scale in scales)
    try:
        step = max(one.elements.shape[-1], 1) if whole else step_of(one, other)
    except ValueError as error:
        raise ValueError(f"{product.kind}: {error}") from error
    (one, factor), (other, last) = (
        _without_scale(q) if whole else _without_outer(by, q) for q in (one, other)
    )  # fmt: skip
    left, right = by.rows("a", one, step), by.rows("b", other, step)
    if accumulator is None:
        found = block_sums(left, right)
    else:
        found = accumulated_sums(left, right, accumulator, (a.format, b.format), key)
    if factor is not None or last is not None:
        last = None if last is None else last.transpose(-1, -2)
        both = Epilogue(tuple(f for f in (factor, last) if f is not None))
        found = both.applied_(product.operation, found)
    return found


def _check_shapes(
    product: Product, by: Matrices, one: QTensor, other: QTensor, a: Tensor, b: Tensor
) -> None:
    """ValueError unless the matrices have as much to sum, and as many batches; a, b: the operands
    as they were given."""
    first, second = OPERANDS[product.kind]
    count, taken = one.elements.shape[-1], other.elements.shape[-1]
    if count != taken:
        raise ValueError(
            f"{first} of {product.kind} has shape {tuple(a.shape)}: {count} to sum, where the "
            f"{second} takes {taken}"
        )
    batches = one.elements.shape[:-2], other.elements.shape[:-2]
    if isinstance(by, Plain) and batches[0] != batches[1]:
        raise ValueError(
            f"{first} of {product.kind} has {tuple(batches[0])} batches of matrices, and the "
            f"{second} {tuple(batches[1])}"
        )


def _cut(by: Matrices, product: Product, operand: Operand, q: QTensor) -> QTensor:
    """`cut` of an operand quantized as the operation takes it, whose scale does not vary along the
    sum, or in blocks of its first axis there."""
    elements = by.cut(operand, q.unshifted())
    batch = [1] * (elements.dim() - 2)
    if q.scale is None or q.scale.numel() == 1:
        scale = None if q.scale is None else q.scale.reshape([1] * elements.dim())
        block = (*batch, *(max(n, 1) for n in elements.shape[-2:]))
        return QTensor(elements, scale, None, q.format, block)
    _, summed = product.axes(operand, q.elements.dim())
    split = min(summed)
    step = q.block[split]
    if product.kind == "grad_weight":  # the axes behind it lie along the sum, whole
        step = step * elements.shape[-1] // max(q.elements.shape[split], 1)
    spread = q.spread(q.scale).expand(q.elements.shape)
    spread = by.cut(operand, spread)
    # one a block, where unfolding put zeros between them
    scale = F.pad(spread, (0, -spread.shape[-1] % step)).unflatten(-1, (-1, step)).amax(-1)
    return QTensor(elements, scale, None, q.format, (*batch, 1, step))


def _without_scale(q: QTensor) -> tuple[QTensor, Tensor | None]:
    """As `_without_outer`, of one scale for all."""
    scale = q.one_level().scale
    return q._replace(scale=None, outer=None), None if scale is None else scale.reshape(1, 1)


def _without_outer(by: Matrices, q: QTensor) -> tuple[QTensor, Tensor | None]:
    """The operand in one level of scales, and what its rows' sums are to be multiplied with,
    (*batch, kept or 1, 1)."""
    outer, scale = q.outer, q.scale
    if outer is None or scale is None:
        return q, None
    if outer.numel() == 1:
        return q._replace(outer=None), outer.reshape(1, 1)
    if isinstance(by, Plain) and outer.shape[-1] == 1:
        outer = outer.expand(*outer.shape[:-2], scale.shape[-2], 1)
        outer = outer.repeat_interleave(q.block[-2], -2)[..., : q.elements.shape[-2], :]
        return q._replace(outer=None), outer
    return q.one_level(), None
