"""Sums in blocks that have scales of their own.

    result[i, j] = sum over blocks, in order, of fl32(S) * fl24(scale_a[i] * scale_b[j]),
    S = sum within the block of a[i, k] b[j, k]

S is taken in fp64, where it is exact for formats of up to 8 bits and blocks of up to 2^20; the
product with the scales and the addition of a block are each rounded once, to fp32 (fl24: 24
significant bits, `engines.scales`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from quantizers import IntFormat, QTensor, kernels
from quantizers.by_device import ByDevice
from quantizers.formats import Format
from quantizers.granularity import expand
from quantizers.kernels import team

from ..engines.scales import times


def step_of(a: QTensor, b: QTensor) -> int:
    """The length of the blocks in which a product of two matrices is summed: the shorter of theirs.

    ValueError where a longer one is no multiple of it.
    """
    length = a.elements.shape[-1]
    sizes = [min(q.block[-1], max(length, 1)) for q in (a, b)]
    step = min(sizes)
    if any(size < length and size % step for size in sizes):
        raise ValueError(
            f"blocks of {sizes[0]} and {sizes[1]} along a sum of {length} do not nest; make one a "
            f"multiple of the other"
        )
    return step


def by_steps(q: QTensor, step: int) -> QTensor:
    """A quantized matrix, its zero points taken off, with a scale for every `step` along its last
    axis, which its blocks there are multiples of."""
    elements, scale = q.unshifted(), q.scale
    if scale is not None and q.block[-1] != step:
        count = max(-(-elements.shape[-1] // step), 1)
        index = torch.arange(count, device=scale.device) * step // q.block[-1]
        scale = scale.index_select(-1, index)
    return QTensor(elements, scale, None, q.format, (*q.block[:-1], step))


class Rows(NamedTuple):
    """A matrix (*batch, rows, terms) whose rows have a scale for every block of their terms.

    scale    (*batch, rows, blocks), fp32, or None for 1
    largest  of its elements: what they are multiples of, and how large they can be, both in units
             of the smallest; None where that is not known, or no integer below 2^24
    """

    elements: Tensor
    scale: Tensor | None
    largest: int | None

    @staticmethod
    def of(q: QTensor) -> Rows:
        """q: `by_steps`."""
        scale, rows = q.scale, q.elements.shape[-2]
        if scale is not None:
            shape = (*scale.shape[:-2], rows, scale.shape[-1])
            scale = expand(scale, shape, (*[1] * (scale.dim() - 2), q.block[-2], 1))
        return Rows(q.elements, scale, _largest(q.format))


def _largest(fmt: Format | None) -> int | None:
    """The largest element of a format, in units of the smallest."""
    if isinstance(fmt, IntFormat):
        return fmt.high - fmt.low
    found = math.inf if fmt is None else fmt.largest / fmt.smallest
    return int(found) if found < 2**24 else None


def block_sums(a: QTensor, b: QTensor) -> Tensor:
    """a: (*batch, i, k), b: (*batch, j, k), `by_steps` alike; batches broadcast, where one is 1
    along trailing ones -> (*batch, i, j), fp32, or fp64 where an operand's elements are."""
    return _summed(a.elements, Rows.of(a), Rows.of(b), a.block[-1])


def _by_blocks(_: Tensor, a: Rows, b: Rows, step: int) -> Tensor:
    wide = torch.promote_types(a.elements.dtype, b.elements.dtype)
    wide = torch.promote_types(wide, torch.float32)
    left, right = a.elements.double(), b.elements.double().transpose(-1, -2)
    total: Tensor | None = None
    for block, start in enumerate(range(0, max(left.shape[-1], 1), step)):
        part = left[..., start : start + step] @ right[..., start : start + step, :]
        part = part.to(wide)
        scales = []
        if a.scale is not None:
            scales.append(a.scale[..., block].unsqueeze(-1))
        if b.scale is not None:
            scales.append(b.scale[..., block].unsqueeze(-2))
        if scales:
            part = part.mul_(times(*scales) if len(scales) == 2 else scales[0])
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _compiled(_: Tensor, a: Rows, b: Rows, step: int) -> Tensor | None:
    """The same in one pass; None where no kernel serves the operands."""
    parts = [part for q in (a, b) for part in (q.elements, q.scale) if part is not None]
    if any(part.dtype != torch.float32 or not kernels.serves(part) for part in parts):
        return None
    *batch_a, rows, terms = a.elements.shape
    *batch_b, columns, _terms = b.elements.shape
    batch = torch.broadcast_shapes(batch_a, batch_b)
    count = math.prod(batch)
    if 0 in (rows, columns, terms, count):
        return None
    exact = a.largest and b.largest and a.largest * b.largest * step <= 2**24
    tile = 64 if columns > 32 else 32
    kernel = kernels.made(
        "qtrain.products.blockwise.compiled_sums", "sums", 0 if exact else 1, tile
    )
    if kernel is None:
        return None
    down, across = -rows % 4, -columns % tile
    left = F.pad(a.elements, (0, 0, 0, down)).contiguous()
    right = F.pad(b.elements, (0, 0, 0, across)).to(torch.float32 if exact else torch.float64)
    right = right.unflatten(-2, (-1, tile)).transpose(-1, -2).contiguous()
    scales = [_of_blocks(q, more, -(-terms // step)) for q, more in ((a, down), (b, across))]
    result = torch.zeros((count, (columns + across) // tile, rows + down, tile))
    words = (
        count, count // math.prod(batch_a), count // math.prod(batch_b), rows + down,
        columns + across, terms, step, left.data_ptr(), right.data_ptr(), scales[0].data_ptr(),
        scales[1].data_ptr(), result.data_ptr(),
    )  # fmt: skip
    team.run(kernel.address, words, count * rows * columns * terms)
    found = result.transpose(1, 2).flatten(2)[:, :rows, :columns]
    return found.reshape(*batch, rows, columns)


def _of_blocks(q: Rows, more: int, blocks: int) -> Tensor:
    """(batch, blocks, rows), fp32, `more` rows added."""
    *batch, rows, _ = q.elements.shape
    count = math.prod(batch)
    if q.scale is None:
        return torch.ones((count, blocks, rows + more))
    scale = q.scale.expand(*batch, rows, blocks).transpose(-1, -2)
    return F.pad(scale, (0, more)).reshape(count, blocks, rows + more).contiguous()


_summed = ByDevice(_by_blocks, cpu=_compiled)
