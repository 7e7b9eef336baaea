"""A product whose sums an accumulator computes.

The product is one of matrices (`blockwise.matrices`): result[i, j] sums over k of left[i, k]
right[j, k], k ascending: of a convolution the kernel's positions one after the other, in C order,
of each its channels; what lies in the padding, or between the places that a stride leaves out, is a
term of 0.  Left and right are the operands' elements, their zero points taken off.

    scales that do not vary along the sum   fl32(S) * fl24(scale_a * scale_b), as of any product; S:
                                            `quantizers.accumulate` of all terms
    blocks along the sum                    S of each block, which starts at 0; times their scales,
                                            added in fp32, as where no accumulator is named

The bias is added at the end, in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from quantizers import fold
from quantizers.accumulators import Accumulator

from ..blockwise.rows import Rows, Windows
from ..engines.scales import times
from .numbers import Formats
from .sums import accumulated

#: values at a time of operands that windows put together: 64 MiB
_JOINED = 2**24


def accumulated_sums(
    a: Rows, b: Rows, accumulator: Accumulator, formats: Formats, key: Tensor | None
) -> Tensor:
    """(*batch, i, k), (*batch, j, k), in the same steps -> (*batch, i, j), fp32; batches as
    `block_sums` takes them.

    Without scales one sum of all terms, where a step is a position; else one of each block.  key:
    of a stochastic rounding; of each block its own, folded with the block's number.
    """
    blocks = [slice(None)] if a.scale is None and b.scale is None else _blocks(a)
    found = [_summed(part, b, blocks, accumulator, formats, key) for part in _joined(a, key)]
    return found[0] if len(found) == 1 else torch.cat(found, -2)


def _blocks(a: Rows) -> list[slice]:
    """Of joined rows, whose positions are filled up to whole blocks: without what fills them."""
    positions = 1 if a.windows is None else a.windows.table.shape[1]
    terms, step = a.elements.shape[-1], a.step
    each = range(0, max(terms, 1), step)  # no terms: one sum of 0
    starts = [
        (position * len(each) * step, start) for position in range(positions) for start in each
    ]
    return [slice(p + start, p + min(start + step, terms)) for p, start in starts]


def _joined(a: Rows, key: Tensor | None) -> Iterator[Rows]:
    """Some rows after the other, without windows; all at once where noise is numbered through
    them."""
    if a.windows is None:
        yield a
        return
    table, places = a.windows.table, a.windows.places
    rows, positions = table.shape
    samples = a.elements.shape[-2] // max(places, 1)
    each = a.elements[..., :1, :].numel() * positions
    fit = max(_JOINED // max(each, 1), 1) if key is None else max(samples * rows, 1)
    together = max(fit // max(rows, 1), 1)
    for first in range(0, max(samples, 1), together):
        own = slice(first * places, (first + together) * places)
        scale = None if a.scale is None else a.scale[..., own, :]
        part = a._replace(elements=a.elements[..., own, :], scale=scale)
        for row in range(0, max(rows, 1), fit):
            some = a.windows if rows <= fit else Windows(table[row : row + fit], places)
            yield part._replace(windows=some).joined()


def _summed(
    a: Rows,
    b: Rows,
    blocks: Sequence[slice],
    accumulator: Accumulator,
    formats: Formats,
    key: Tensor | None,
) -> Tensor:
    left, right = _in_fp32(a.elements), _in_fp32(b.elements)
    total: Tensor | None = None
    for block, own in enumerate(blocks):
        noise = key if key is None or len(blocks) == 1 else fold(key, block)
        part = accumulated(left[..., own], right[..., own], accumulator, formats, noise).float()
        scales = [
            scale[..., block].unsqueeze(axis)
            for scale, axis in ((a.scale, -1), (b.scale, -2))
            if scale is not None
        ]
        if scales:
            part = part.mul_(times(*scales) if len(scales) == 2 else scales[0])
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _in_fp32(x: Tensor) -> Tensor:
    """Where that holds all values; others are for `accumulate` to refuse."""
    narrow = x.float()
    if x.dtype == torch.float64 and not bool(((narrow.double() == x) | x.isnan()).all()):
        return x
    return narrow
