"""Sums that matrix products in fp64 give exactly, whatever their order: whole ones and chunks'."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from quantizers import kernels
from quantizers.accumulators import Accumulator, Exact, Integer, Sequential
from quantizers.accumulators.exactness import odd_sum
from quantizers.kernels import team
from quantizers.kernels.serving import MODES
from quantizers.rounding import round_to_float

from .numbers import Formats, constants_of, plain, span

#: sums of a chunk at a time, and terms, in fp64: half a MiB each
_CACHED = 2**16


def by_products(
    a: Tensor, b: Tensor, accumulator: Accumulator, formats: Formats, key: Tensor | None
) -> Tensor | None:
    """`sums.accumulated` of accumulators that round an exact sum: `Exact`, `Integer` that wraps,
    `Sequential` that rounds at the boundaries of chunks alone.  None for others, and for formats
    whose products lie too far apart."""
    if isinstance(accumulator, Sequential):
        if accumulator.inside != "exact" or accumulator.noisy or accumulator.compensated:
            return None
        terms = min(accumulator.chunk or a.shape[-1], a.shape[-1])
    elif isinstance(accumulator, Exact) or (
        isinstance(accumulator, Integer) and accumulator.overflow == "wrap"
    ):
        terms = a.shape[-1]
    else:
        return None
    spans = [span(fmt) for fmt in formats]
    if None in spans or spans[0] * spans[1] * max(terms, 1) > 2**53:  # type: ignore[operator]
        return None
    right = b.double().mT
    if isinstance(accumulator, Sequential):
        return _in_chunks(a, right, accumulator)
    exact = a.double() @ right
    if isinstance(accumulator, Exact):
        return exact.float()
    half = 1 << (accumulator.bits - 1)
    return ((exact.to(torch.int64) + half) & (2 * half - 1)) - half


def _in_chunks(left: Tensor, right: Tensor, accumulator: Sequential) -> Tensor:
    """right: fp64."""
    each = accumulator.chunk or max(left.shape[-1], 1)
    parts = []
    for rows in left.split(max(_CACHED // max(*right.shape[-2:], 1), 64), -2):
        rows, total = rows.double(), None
        for start in range(0, max(left.shape[-1], 1), each):
            chunk = rows[..., start : start + each] @ right[..., start : start + each, :]
            total = torch.zeros_like(chunk) if total is None else total
            if not _added_(total, chunk, accumulator):
                chunk = round_to_float(chunk, accumulator.format, accumulator.rounding)
                both = odd_sum(total, chunk)
                total = round_to_float(both, accumulator.format, accumulator.rounding)
        assert total is not None
        parts.append(total.float())
    return parts[0] if len(parts) == 1 else torch.cat(parts, -2)


def _added_(total: Tensor, chunk: Tensor, accumulator: Sequential) -> bool:
    """In one pass, in place; whether a kernel served it."""
    if not kernels.serves(total, chunk) or total.numel() == 0:
        return False
    mode, odd = accumulator.rounding.mode, not plain(accumulator, (None, None))
    kernel = kernels.made(f"{__package__}.compiled_chunks", "added", MODES[mode], int(odd))
    if kernel is None:
        return False
    constants = np.array(constants_of(accumulator.format))
    words = total.numel(), chunk.data_ptr(), total.data_ptr(), constants.ctypes.data
    team.run(kernel.address, team.packed(*words), 8 * total.numel())
    return True
