"""Sums in blocks that have scales of their own.

    result[i, j] = sum over blocks, in order, of fl32(S) * fl24(scale_a[i] * scale_b[j]),
    S = sum within the block of a[i, k] b[j, k]

S is taken in fp64, where it is exact for formats of up to 8 bits and blocks of up to 2^20; every
product with a scale and every addition of a block is rounded once, to fp32 (fl24: 24 significant
bits, `engines.scales`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers import QTensor
from quantizers.granularity import expand

from .engines.scales import times


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


def block_sums(a: QTensor, b: QTensor) -> Tensor:
    """a: (*batch, i, k), b: (*batch, j, k), `by_steps` alike; batches broadcast -> (*batch, i, j),
    fp32, or fp64 where an operand's elements are."""
    step, length = a.block[-1], a.elements.shape[-1]
    wide = torch.promote_types(a.elements.dtype, b.elements.dtype)
    wide = torch.promote_types(wide, torch.float32)
    left, right = a.elements.double(), b.elements.double().transpose(-1, -2)
    scales = []
    for q in (a, b):
        if q.scale is not None:
            rows = q.elements.shape[-2]
            shape = (*q.scale.shape[:-2], rows, q.scale.shape[-1])
            scales.append(expand(q.scale, shape, (*[1] * (q.scale.dim() - 2), q.block[-2], 1)))
        else:
            scales.append(None)
    total: Tensor | None = None
    for number, start in enumerate(range(0, max(length, 1), step)):
        part = left[..., start : start + step] @ right[..., start : start + step, :]
        part = part.to(wide)
        one, other = (None if s is None else s[..., number] for s in scales)
        if one is not None and other is not None:
            scale = times(one[..., :, None], other[..., None, :])
        else:
            scale = None
            if one is not None:
                scale = one[..., :, None]
            if other is not None:
                scale = other[..., None, :]
        if scale is not None:
            part = part.mul_(scale)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total
