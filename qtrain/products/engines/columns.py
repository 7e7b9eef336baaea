"""The input of a convolution as the rows of a matrix, without converting its elements."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .geometry import Window


def columns(x: Tensor, window: Window, kernel: Sequence[int], fill: Tensor | None = None) -> Tensor:
    """Every position's view of the input.

    x: (N, C, *S) of any dtype; fill: what the padding holds, 0-d; None: zeros
    -> (N, *gathered, *kernel, C), a view where nothing is padded.
    """
    last = x.movedim(1, -1).contiguous()
    if any(window.padding):
        sizes = [n + 2 * p for n, p in zip(x.shape[2:], window.padding, strict=True)]
        padded = last.new_zeros([x.shape[0], *sizes, x.shape[1]])
        if fill is not None:
            padded.fill_(fill)
        inner = padded
        for axis, (n, p) in enumerate(zip(x.shape[2:], window.padding, strict=True), 1):
            inner = inner.narrow(axis, p, n)
        inner.copy_(last)
        last = padded
    size = window.gathered(x.shape[2:], kernel)
    batch, *space, channel = last.stride()
    moves = [step * s for step, s in zip(space, window.stride, strict=True)]
    taps = [step * d for step, d in zip(space, window.dilation, strict=True)]
    return last.as_strided(
        (x.shape[0], *size, *kernel, x.shape[1]), (batch, *moves, *taps, channel)
    )
