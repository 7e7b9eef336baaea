"""Sums in blocks that have scales of their own.

    result[i, j] = sum over blocks, in order, of fl32(S) * fl24(scale_a[i] * scale_b[j]),
    S = sum within the block of a[i, k] b[j, k]

S is taken in fp64, where it is exact for formats of up to 8 bits and blocks of up to 2^20; the
product with the scales and the addition of a block are each rounded once, to fp32 (fl24: 24
significant bits, `engines.scales`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from quantizers import kernels
from quantizers.devices.by_device import ByDevice
from quantizers.kernels import team

from ..engines.scales import times
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


_KERNELS = "qtrain.products.blockwise.compiled_sums"


def _compiled(_: Tensor, a: Rows, b: Rows) -> Tensor | None:
    """The same in one pass; None where no kernel serves the operands."""
    parts = [part for q in (a, b) for part in (q.elements, q.scale) if part is not None]
    if any(part.dtype != torch.float32 or not kernels.serves(part) for part in parts):
        return None
    *batch_a, places, terms = a.elements.shape
    *batch_b, columns, others = b.elements.shape
    if a.windows is None and math.prod(batch_a) < math.prod(batch_b):
        # what all share is laid out anew, what they do not is read as it lies
        found = _compiled(_, b, a)
        return None if found is None else found.transpose(-1, -2)
    batch = torch.broadcast_shapes(batch_a, batch_b)
    count, (positions, rows, table) = math.prod(batch), (1, places, None)
    served = chosen = max(places, 1)
    if a.windows is not None:
        table, chosen = a.windows.table, a.windows.places
        served, positions = table.shape
        rows = places // max(chosen, 1) * served
    exact = a.largest and b.largest and a.largest * b.largest * a.step <= 2**24
    tile = 64 if columns > 32 else 32
    if 0 in (rows, columns, terms, count):
        return None
    far = _far(a.scale, b.scale)
    wide = 0 if exact else 1
    kernel = kernels.made(_KERNELS, "sums", wide, int(far), tile)
    pack = kernels.made(_KERNELS, "packed", wide, tile)
    if kernel is None or pack is None:
        return None
    across = -columns % tile
    source = b.elements.contiguous()
    shape = (*batch_b, (columns + across) // tile, others, tile)
    right = source.new_empty(shape, dtype=torch.float64 if wide else torch.float32)
    matrix = math.prod(batch_b), columns, others, source.data_ptr(), right.data_ptr()
    team.run(pack.address, team.packed(*matrix), right.numel())
    own = -(-terms // a.step)
    left = a.elements.contiguous()
    scale = left.new_ones((*batch_a, places, own)) if a.scale is None else a.scale.contiguous()
    across_b = left.new_ones((*batch_b, columns, positions * own)) if b.scale is None else b.scale
    across_b = _padded(across_b, 2, across).transpose(-1, -2).contiguous()
    result = left.new_zeros((count, (columns + across) // tile, -(-rows // 4) * 4, tile))
    zeros = left.new_zeros(terms)
    words = (
        count, count // math.prod(batch_a), count // math.prod(batch_b), rows, columns + across,
        positions, terms, a.step, places, served, chosen, left.data_ptr(), scale.data_ptr(),
        0 if table is None else table.ctypes.data, right.data_ptr(), across_b.data_ptr(),
        result.data_ptr(), zeros.data_ptr(), others // positions,
    )  # fmt: skip
    team.run(kernel.address, team.packed(*words), count * rows * columns * terms)
    found = result.transpose(1, 2).flatten(2)[:, :rows, :columns]
    return found.reshape(*batch, rows, columns)


def _far(*scales: Tensor | None) -> bool:
    """Whether the product of two scales may be no normal number of fp32."""
    low = high = 1.0
    for scale in scales:
        if scale is not None:
            least = torch.where(scale == 0, 1.0, scale).amin().item()
            low, high = low * least, high * scale.amax().item()
    return not (low >= 2.0**-126 and high < 2.0**127)


def _padded(x: Tensor, axis: int, more: int) -> Tensor:
    """Zeros added at the end of an axis, counted from the last, 1."""
    return F.pad(x, (0, 0) * (axis - 1) + (0, more)) if more else x


_summed = ByDevice(_by_blocks, cpu=_compiled, cuda=gpu.block_sums)
