"""The passes of `norm_passes`, compiled, for channels-last CPU tensors of up to 32 bits.

Sums are taken in fp32 within blocks of rows and in fp64 over the blocks, whatever the number of
threads.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from quantizers import FloatFormat, IntFormat, bf16, fp16, kernels, round_to
from quantizers.kernels import team
from quantizers.kernels.serving import SOURCES, TARGETS

from .channel_sample import Cut, Extremes
from .norm_passes import Affine, Extra, Slope, Sums

_TARGETS: dict[tuple[torch.dtype, FloatFormat | None], int] = {
    (torch.float32, None): 0,
    (torch.float16, None): 1,
    (torch.float16, fp16): 1,
    (torch.bfloat16, None): 2,
    (torch.bfloat16, bf16): 2,
    (torch.float32, fp16): 3,
    (torch.float32, bf16): 4,
}
#: formats to which the kernels round an output before its ReLU
_ROUNDINGS: dict[FloatFormat | None, int] = {None: 0, fp16: 1, bf16: 2}
#: rows whose elements are added in fp32
_BLOCK = 128


def _made(name: str, *numbers: int) -> Any:
    return kernels.made("qtrain.norm_compiled", name, *numbers)


def serves(x: Tensor, activation: FloatFormat | None = None, relu: bool = False) -> bool:
    """Whether the kernels take x (channels adjacent in memory, few enough rows to number) and an
    output rounded to `activation`, then to 0 where negative with relu."""
    return (
        kernels.serves(x)
        and x.dtype in SOURCES
        and 0 < x.numel() < 2**31
        and x.movedim(1, -1).is_contiguous()
        and (not relu or activation in _ROUNDINGS)
        and _made("normalize", SOURCES[x.dtype], 0, False) is not None
    )


@lru_cache(maxsize=1024)
def _starts(start: int, number: int, length: int) -> tuple[Tensor, int]:
    """First rows of the blocks of a cut (and the end), and how many blocks a chunk has."""
    each = max(1, min(length, -(-length // _BLOCK)))
    inner = torch.arange(each + 1) * length // each
    chunks = start + length * torch.arange(number).unsqueeze(1)
    starts = torch.cat([(chunks + inner[:-1]).flatten(), torch.tensor([start + number * length])])
    return starts, each


def _run(kernel: Any, count: int, *words: int | Tensor) -> None:
    addresses = [word if isinstance(word, int) else word.data_ptr() for word in words]
    team.run(kernel.address, addresses, count)


def _added(blocks: Tensor) -> Tensor:
    return blocks.sum(0, dtype=torch.float64).float()


class _Channels:
    """A Sample read from x's own memory."""

    def __init__(self, x: Tensor, mean: Tensor) -> None:
        self.x, self.mean = x, mean
        self.channels = x.shape[1]
        #: 0, or NaN where an element is not finite: the kernels' comparisons skip NaN
        self.taint = mean - mean

    @property
    def count(self) -> int:
        return self.x.numel() // self.channels

    def _statistics(self, kind: int, cut: Cut) -> tuple[list[Tensor], int]:
        starts, each = _starts(*cut)
        blocks = starts.numel() - 1
        total, high, low = (self.mean.new_empty(blocks, self.channels) for _ in range(3))
        high_at, low_at = (total.new_empty(total.shape, dtype=torch.int32) for _ in range(2))
        kernel = _made("statistics", SOURCES[self.x.dtype], kind)
        out = [total, high, high_at, low, low_at]
        _run(kernel, self.x.numel(), self.channels, self.x, starts, blocks, *out, self.mean)
        return out, each

    def _sum(self, kind: int) -> Tensor:
        return _added(self._statistics(kind, Cut(0, 1, self.count))[0][0])

    def mean_square(self) -> Tensor:
        return self._sum(0) / self.count

    def mean_magnitude(self) -> Tensor:
        return self._sum(1) / self.count

    def _first(self, values: Tensor, at: Tensor, each: int, largest: bool) -> tuple[Tensor, Tensor]:
        """Of each chunk's blocks the best value (C, chunks) and the least of its rows."""
        values, at = (t.view(-1, each, self.channels) for t in (values, at))
        best = values.amax(1) if largest else values.amin(1)
        row = torch.where(values == best.unsqueeze(1), at, 2**31 - 1).amin(1)
        return best.t(), row.t().long()

    def largest(self, k: int) -> Tensor:
        if k > 1:
            rows = self.x.movedim(1, -1).reshape(-1, self.channels).float() - self.mean
            return rows.abs().topk(k, dim=0).indices.t()
        out, each = self._statistics(2, Cut(0, 1, self.count))
        return self._first(out[1], out[2], each, largest=True)[1]

    def take(self, index: Tensor) -> Tensor:
        rows = self.x.movedim(1, -1).reshape(-1, self.channels)
        return (rows.gather(0, index.t()).float() - self.mean + self.taint).t()

    def extremes(self, cut: Cut) -> Extremes:
        (_, high, high_at, low, low_at), each = self._statistics(3, cut)
        top, top_at = self._first(high, high_at, each, largest=True)
        bottom, bottom_at = self._first(low, low_at, each, largest=False)
        taint = self.taint.unsqueeze(1)
        return Extremes(top + taint, bottom + taint, top_at, bottom_at)


def sample(x: Tensor, mean: Tensor) -> _Channels:
    """The channels' elements less their means."""
    return _Channels(x, mean)


def affine(x: Tensor, of: Affine, dtype: torch.dtype) -> Tensor:
    """y in `dtype`."""
    target = _TARGETS.get((dtype, of.activation))
    if target is None:
        assert of.activation is not None
        y = affine(x, of._replace(activation=None, relu=False), torch.float32)
        y = round_to(y, of.activation)
        return (y.relu_() if of.relu else y).to(dtype)
    y = torch.empty_like(x, dtype=dtype)
    kernel = _made("normalize", SOURCES[x.dtype], target, of.relu)
    _run(kernel, x.numel(), *_size(x), x, y, *of[:3])
    return y


def codes(
    x: Tensor, of: Affine, scale: Tensor, zero_point: Tensor | None, format: IntFormat
) -> Tensor:
    """round(y / scale) + zero_point, clamped to the format: y's elements, in x's layout, without
    y.  scale, zero_point: one entry."""
    elements = torch.empty_like(x, dtype=format.dtype)
    target = TARGETS[format.dtype]
    kernel = _made("codes", SOURCES[x.dtype], target, of.relu, _ROUNDINGS[of.activation])
    bounds = torch.tensor([format.low, format.high], dtype=torch.float32)
    zero = 0 if zero_point is None else zero_point
    _run(kernel, x.numel(), *_size(x), x, elements, *of[:3], scale, zero, bounds)
    return elements


def _relu(of: Affine) -> tuple[bool, int]:
    """Whether there is one, and what y is rounded to before it."""
    return of.relu, _ROUNDINGS[of.activation] if of.relu else 0


def _size(x: Tensor) -> tuple[int, int]:
    """(rows, channels)"""
    return x.numel() // x.shape[1], x.shape[1]


def aligned(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient in x's layout and a dtype that the kernels read."""
    grad = grad if grad.dtype in SOURCES else grad.float()
    if grad.stride() == x.stride() or grad.movedim(1, -1).is_contiguous():
        return grad
    return torch.empty_like(x, dtype=grad.dtype).copy_(grad)


def sums(x: Tensor, grad: Tensor, of: Affine, extra: Extra) -> Sums:
    """The sums that the gradient needs; g: grad (`aligned`), where the ReLU was on."""
    starts, _ = _starts(0, 1, x.numel() // x.shape[1])
    blocks = starts.numel() - 1
    plain, product, more = (of.mean.new_empty(blocks, x.shape[1]) for _ in range(3))
    kernel = _made(
        "backward_sums", SOURCES[x.dtype], SOURCES[grad.dtype], extra == "squares",
        extra == "signs", *_relu(of),
    )  # fmt: skip
    _run(
        kernel, x.numel(), x.shape[1], x, starts, blocks, grad, *of[:3], plain, product, more
    )  # fmt: skip
    return Sums(_added(plain), _added(product), None if extra is None else _added(more))


def grad_input(
    x: Tensor, grad: Tensor, of: Affine, offset: Tensor, slope: Slope | None, dtype: torch.dtype
) -> Tensor:
    """g * scale + offset + slope, in `dtype`."""
    result = torch.empty_like(x, dtype=dtype)
    kernel = _made(
        "backward_input", SOURCES[x.dtype], SOURCES[grad.dtype], _TARGETS[dtype, None],
        slope is not None, slope is not None and slope.of == "sign", *_relu(of),
    )  # fmt: skip
    factor = offset if slope is None else slope.factor
    _run(kernel, x.numel(), *_size(x), x, grad, result, *of[:3], factor, offset)
    return result


def add_at(grad: Tensor, index: Tensor, value: Tensor) -> Tensor:
    """grad, a result of `grad_input`, with value (C, J) added at rows index (C, J), in place."""
    rows = grad.movedim(1, -1).view(-1, grad.shape[1])
    channel = torch.arange(index.shape[0]).unsqueeze(1)
    rows.index_put_((index, channel), value, accumulate=True)
    return grad


def add_relu(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
    """(relu(x + y), where it was off), or None where no kernel serves them."""
    alike = x.dtype == y.dtype and x.shape == y.shape and x.stride() == y.stride()
    if not (alike and x.dtype in SOURCES and kernels.serves(x) and kernels.serves(y)):
        return None
    kernel = _made("add_relu", SOURCES[x.dtype])
    result, off = torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)
    if kernel is None or x.numel() == 0 or not kernels.is_dense(x) or result.stride() != x.stride():
        return None
    _run(kernel, x.numel(), x.numel(), x, y, result, off)
    return result, off


def masked(grad: Tensor, off: Tensor) -> Tensor | None:
    """The gradient, 0 where off, or None where no kernel serves it; off: dense."""
    alike = grad.dtype in SOURCES and grad.stride() == off.stride() and kernels.serves(grad)
    kernel = _made("masked", SOURCES[grad.dtype]) if alike and grad.numel() else None
    if kernel is None:
        return None
    result = torch.empty_like(grad)
    _run(kernel, grad.numel(), grad.numel(), grad, result, off)
    return result
