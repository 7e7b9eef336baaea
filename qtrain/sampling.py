"""A bounded number of a tensor's elements, evenly spread, the same ones for the same shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from quantizers import QTensor


def places(count: int, limit: int, device: torch.device) -> Tensor:
    """`limit` different numbers below `count`, int64; needs limit < count.

    Multiples, modulo count, of the number coprime to it next to count / golden ratio: such a
    sequence is even at every length and falls into step with no axis of a tensor.
    """
    step = round(count * (math.sqrt(5) - 1) / 2)
    while math.gcd(step, count) != 1:
        step += 1
    return torch.arange(limit, device=device) * step % count


def chosen(x: Tensor, limit: int) -> Tensor:
    """Where `sampled` looks: places in x's logical order, int64; all where x has no more."""
    if x.numel() <= limit:
        return torch.arange(x.numel(), device=x.device)
    return places(x.numel(), limit, x.device)


def cropped(shape: Sequence[int], limit: int) -> tuple[slice, ...]:
    """A smaller block of a tensor, of at most `limit` elements where every axis may shrink to one:
    the longest axis is thinned out to every second index, then the next."""
    steps = [1] * len(shape)
    sizes = list(shape)
    while math.prod(sizes) > limit:
        axis = max(range(len(sizes)), key=sizes.__getitem__)
        steps[axis] *= 2
        sizes[axis] = -(-shape[axis] // steps[axis])
    return tuple(slice(None, None, step) for step in steps)


def sampled(x: Tensor, *others: Tensor | QTensor, limit: int) -> list[Tensor | QTensor]:
    """The tensors, all of x's shape, at the same `limit` places, flat; whole where x has no more
    elements.  A quantized one keeps its only scale and zero point, or has one for each element."""
    if x.numel() <= limit:
        return [x, *others]
    at = chosen(x, limit)

    def side(q: QTensor, compact: Tensor | None) -> Tensor | None:
        if compact is None:
            return None
        if compact.numel() == 1:
            return compact.reshape(1)
        return q.spread(compact).expand(x.shape).take(at)

    def some(t: Tensor | QTensor) -> Tensor | QTensor:
        if isinstance(t, Tensor):
            return t.take(at)
        block = limit if t.scale is None or t.scale.numel() == 1 else 1
        scale, zero_point = side(t, t.scale), side(t, t.zero_point)
        return QTensor(t.elements.take(at), scale, zero_point, t.format, (block,))

    return [some(t) for t in (x, *others)]
