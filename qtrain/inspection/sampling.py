"""A bounded number of a tensor's elements, evenly spread, the same ones for the same shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from quantizers import QTensor

_Sampled = TypeVar("_Sampled", Tensor, QTensor)


def places(count: int, limit: int, device: torch.device) -> Tensor:
    """`limit` different numbers below `count`, int64; needs limit < count.

    Multiples, modulo count, of the number coprime to it next to count / golden ratio: such a
    sequence is even at every length and falls into step with no axis of a tensor.
    """
    step = round(count * (math.sqrt(5) - 1) / 2)
    while math.gcd(step, count) != 1:
        step += 1
    return torch.arange(limit, device=device) * step % count


def cropped(shape: Sequence[int], limit: int, *, keep: int | None = None) -> tuple[slice, ...]:
    """A smaller block of a tensor, of at most `limit` elements where the axes that may shrink allow
    it: the longest one is thinned out to every second index, then the next; `keep` stays whole."""
    steps = [1] * len(shape)
    sizes = list(shape)
    thin = [axis for axis in range(len(shape)) if axis != keep]
    while math.prod(sizes) > limit and any(sizes[axis] > 1 for axis in thin):
        axis = max(thin, key=sizes.__getitem__)
        steps[axis] *= 2
        sizes[axis] = -(-shape[axis] // steps[axis])
    return tuple(slice(None, None, step) for step in steps)


def block(x: Tensor, q: QTensor, at: tuple[slice, ...]) -> tuple[Tensor, QTensor]:
    """A block of a tensor and of its quantized self."""
    scale, zero_point, outer = (
        None if part is None else q.spread(part).expand(x.shape)[at]
        for part in (q.scale, q.zero_point, q.outer)
    )
    return x[at], QTensor(q.elements[at], scale, zero_point, q.format, (1,) * x.dim(), outer)


def sampled(x: _Sampled, limit: int) -> _Sampled:
    """A tensor at `limit` places, flat; whole where it has no more elements.  A quantized one keeps
    its only scale and zero point, or has one for each element."""
    elements = x if isinstance(x, Tensor) else x.elements
    if elements.numel() <= limit:
        return x
    at = places(elements.numel(), limit, elements.device)
    if isinstance(x, Tensor):
        return x.take(at)
    one = x.scale is None or x.scale.numel() == 1
    sides = [x.scale, x.zero_point, x.outer]
    for i, side in enumerate(sides):
        if side is not None:
            single = one and side.numel() == 1
            sides[i] = side.reshape(1) if single else x.spread(side).expand(elements.shape).take(at)
    scale, zero_point, outer = sides
    block = (limit if one else 1,)
    return QTensor(elements.take(at), scale, zero_point, x.format, block, outer)
