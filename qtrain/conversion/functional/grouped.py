"""Grouped products, as a mixture's experts multiply: matrices of which one axis holds groups."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .calling import Calling
from .matrices import matmul


class Groups(NamedTuple):
    """Consecutive pieces of an axis, padded with zeros to the longest.

    pieces, length  how many, padded to how long
    total           of the axis, of which what lies behind the last piece is in none
    places          (covered,) int64: where each position of the pieces lies among pieces * length
    """

    pieces: int
    length: int
    total: int
    places: Tensor

    def padded(self, x: Tensor) -> Tensor:
        """(total, n) -> (pieces, length, n)."""
        own = x.new_zeros(self.pieces * self.length, x.shape[1])
        covered = x[: len(self.places)]
        return own.index_copy(0, self.places, covered).view(self.pieces, self.length, -1)

    def unpadded(self, x: Tensor) -> Tensor:
        """(pieces, length, n) -> (total, n), 0 behind the last piece."""
        found = x.flatten(0, 1).index_select(0, self.places)
        return F.pad(found, (0, 0, 0, self.total - len(self.places)))


def _groups(offs: Tensor, total: int) -> Groups:
    """Of the ends of the pieces; on the meta device, where nobody knows them, of pieces alike."""
    if offs.is_meta:
        ends = [total * (i + 1) // len(offs) for i in range(len(offs))]
    else:
        ends = [min(int(end), total) for end in offs.tolist()]
    starts = [0, *ends[:-1]]
    length = max(1, *(end - start for start, end in zip(starts, ends, strict=True)))
    places = [
        piece * length + i
        for piece, (start, end) in enumerate(zip(starts, ends, strict=True))
        for i in range(end - start)
    ]
    return Groups(
        len(offs), length, total, torch.tensor(places, dtype=torch.int64, device=offs.device)
    )


def grouped_mm(
    call: Calling, mat_a: Tensor, mat_b: Tensor, offs: Tensor | None = None, bias: Any = None,
    out_dtype: Any = None,
) -> Any:  # fmt: skip
    """torch.nn.functional.grouped_mm: one batched matrix product, of groups padded with zeros.

    (M, K) x (G, K, N), offs along M -> (M, N);  (G, M, K) x (K, N), offs along N -> (M, N);
    (M, K) x (K, N), offs along K -> (G, M, N);  (G, M, K) x (G, K, N) -> (G, M, N).  Positions
    behind offs[-1] are in no group: 0, where torch leaves what was in memory.

    A zero is a zero under every quantizer but `RealOffset`, so padding adds nothing to a product.
    It does join what a quantizer looks at: a range includes 0, a mean over elements is smaller,
    chunks and blocks of rows begin anew in each group.  Its multiply-adds are counted, as hardware
    that pads has them.

    Under torch.compile no mode is shown such a call: it is torch's.
    """
    flat = [mat_a.dim(), mat_b.dim()].count(2)  # how many of the two have groups along an axis
    odd = bias is not None or mat_a.dim() not in (2, 3) or mat_b.dim() not in (2, 3)
    if odd or (out_dtype is not None and out_dtype != mat_a.dtype):
        return call.plain()
    if offs is None:
        return call.plain() if flat else matmul(call, mat_a, mat_b)
    if not flat or offs.dim() != 1 or not len(offs):
        return call.plain()  # torch says what is wrong
    layer = call.layer("matmul", (), mat_b, mat_a)
    if layer is None:
        return call.plain()
    if flat == 2:
        groups = _groups(offs, mat_a.shape[1])
        return layer(groups.padded(mat_a.t()).mT, groups.padded(mat_b))
    if mat_a.dim() == 2:
        groups = _groups(offs, mat_a.shape[0])
        return groups.unpadded(layer(groups.padded(mat_a), mat_b))
    groups = _groups(offs, mat_b.shape[1])
    return groups.unpadded(layer(mat_a, groups.padded(mat_b.t()).mT).mT).t()
