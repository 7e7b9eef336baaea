"""Sums in blocks that have scales of their own.

    result[i, j] = sum over blocks, in order, of fl32(S) * fl24(scale_a[i] * scale_b[j]),
    S = sum within the block of a[i, k] b[j, k]

S is taken in fp64, where it is exact for integers and floats of up to 8 bits and blocks of up to
2^16, but for two formats with e5m2's exponents, whose products may lie further apart.  The product
with the scales and the addition of a block are each rounded once, to fp32 (fl24: 24 significant
bits, `engines.scales`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers.devices.by_device import ByDevice

from ..engines.scales import times
from . import fused
from .gpu import sums as gpu
from .rows import Rows


def block_sums(a: Rows, b: Rows) -> Tensor:
    """a: (*batch, i, k), b: (*batch, j, k), in the same steps; where one has fewer batches, each
    serves as many of the other's that follow one another -> (*batch, i, j), fp32, or fp64 where an
    operand's elements are."""
    return _summed(a.elements, a, b)


def _by_blocks(_: Tensor, a: Rows, b: Rows) -> Tensor:
    a, b = a.joined(), b.joined()
    wide = torch.promote_types(a.elements.dtype, b.elements.dtype)
    wide = torch.promote_types(wide, torch.float32)
    left, right = a.elements.double(), b.elements.double().transpose(-1, -2)
    total: Tensor | None = None
    for block, start in enumerate(range(0, max(left.shape[-1], 1), a.step)):
        part = left[..., start : start + a.step] @ right[..., start : start + a.step, :]
        part = part.to(wide)
        scales = []
        if a.scale is not None:
            scales.append(a.scale[..., block].unsqueeze(-1))
        if b.scale is not None:
            scales.append(b.scale[..., block].unsqueeze(-2))
        if scales:
            part = part.mul_(times(*scales) if len(scales) == 2 else scales[0])
        total = part.add_(0.0) if total is None else total.add_(part)  # no sum starts at -0
    assert total is not None
    return total


_summed = ByDevice(_by_blocks, cpu=fused.summed, cuda=gpu.block_sums)
