"""The passes of `norm_passes`, compiled, for contiguous and channels-last CPU tensors of up to 32
bits.

Sums are taken in fp32 over at most some hundred elements and in fp64 over those, whatever the
number of threads.  A pass whose kernel cannot be had is torch's.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantizers import FloatFormat, IntFormat, bf16, fp16, kernels, round_to
from quantizers.kernels import team
from quantizers.kernels.plan import constants
from quantizers.kernels.serving import SOURCES, TARGETS
from quantizers.numbers import divided

from .. import passes as norm_passes
from ..passes import Affine, Extra, Slope, Sums, flat_index
from ..samples import Cut, Extremes, Sample

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
#: elements that are added in fp32
_BLOCK = 128
#: at most so many neighbours in a plane are added side by side
_LANES = 64


def _made(name: str, *numbers: int) -> Any:
    return kernels.made("qtrain.norms.kernels.compiled_norm", name, *numbers)


def _is_dense(x: Tensor, planes: bool) -> bool:
    """Whether x's runs are planes of one channel (contiguous), or rows (channels-last)."""
    return x.is_contiguous() if planes else x.movedim(1, -1).is_contiguous()


def _planes(x: Tensor) -> bool:
    """Which of the two x's runs are; rows of tensors that are both, (N, C)."""
    return x.is_contiguous() and x.numel() > x.shape[0] * x.shape[1]


def _size(x: Tensor) -> tuple[int, int, int]:
    """(runs, their width, channels)"""
    channels = x.shape[1]
    width = x.numel() // (x.shape[0] * channels) if _planes(x) else channels
    return x.numel() // width, width, channels


def _flat(x: Tensor) -> Tensor:
    """The same memory as (N, C, S)."""
    return x.view(x.shape[0], x.shape[1], -1)


def serves(x: Tensor, activation: FloatFormat | None = None, relu: bool = False) -> bool:
    """Whether the kernels take x (contiguous or channels-last, few enough elements to number) and
    an output rounded to `activation`, then to 0 where negative with relu."""
    return (
        kernels.serves(x)
        and x.dtype in SOURCES
        and 0 < x.numel() < 2**31
        and (_is_dense(x, True) or _is_dense(x, False))
        and (not relu or activation in _ROUNDINGS)
        and _made("normalize", SOURCES[x.dtype], 0, False, _planes(x)) is not None
    )


class _Blocks(NamedTuple):
    """Runs of consecutive elements of each channel whose elements are added up in fp32, in lanes.

    starts   their first elements, and the end of the last
    each     how many a chunk of the cut has
    """

    starts: Tensor
    each: int
    lanes: int

    def partial(self, like: Tensor, channels: int) -> Tensor:
        return like.new_empty(self.starts.numel() - 1, channels, self.lanes)


@lru_cache(maxsize=1024)
def _blocks(planes: bool, width: int, cut: Cut) -> _Blocks:
    start, number, length = cut
    turns = -(-width // _LANES)
    lanes = min(-(-width // turns), length) if planes else 1
    each = max(1, -(-length // (_BLOCK * lanes)))
    with torch.device("cpu"):  # whose memory the kernels read
        inner = torch.arange(each + 1) * length // each
        chunks = start + length * torch.arange(number).unsqueeze(1)
        end = torch.tensor([start + number * length])
    return _Blocks(torch.cat([(chunks + inner[:-1]).flatten(), end]), each, lanes)


def _run(kernel: Any, count: int, *words: int | Tensor) -> None:
    addresses = [word if isinstance(word, int) else word.data_ptr() for word in words]
    team.run(kernel.address, addresses, count)


def _added(partial: Tensor) -> Tensor:
    return partial.sum((0, 2), dtype=torch.float64).float()


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

    def _torch(self) -> Sample:
        return norm_passes.sample(self.x, self.mean)

    def _statistics(self, kind: int, cut: Cut) -> tuple[list[Tensor], int] | None:
        planes, (_, width, channels) = _planes(self.x), _size(self.x)
        kernel = _made("statistics", SOURCES[self.x.dtype], kind, planes)
        if kernel is None:
            return None
        blocks = _blocks(planes, width, cut)
        total, high, low = (blocks.partial(self.mean, channels) for _ in range(3))
        high_at, low_at = (total.new_empty(total.shape, dtype=torch.int32) for _ in range(2))
        out = [total, high, high_at, low, low_at]
        _run(
            kernel, self.x.numel(), channels, width, blocks.lanes, self.x, blocks.starts,
            total.shape[0], *out, self.mean,
        )  # fmt: skip
        return out, blocks.each

    def _mean(self, kind: int) -> Tensor | None:
        found = self._statistics(kind, Cut(0, 1, self.count))
        return None if found is None else divided(_added(found[0][0]), self.count)

    def ones(self) -> Tensor:
        return torch.ones_like(self.mean)

    def mean_square(self) -> Tensor:
        mean = self._mean(0)
        return self._torch().mean_square() if mean is None else mean

    def mean_magnitude(self) -> Tensor:
        mean = self._mean(1)
        return self._torch().mean_magnitude() if mean is None else mean

    def _first(self, values: Tensor, at: Tensor, each: int, largest: bool) -> tuple[Tensor, Tensor]:
        """Of each chunk's blocks the best value (C, chunks) and the least of its indices."""
        values, at = (t.view(-1, each, *t.shape[1:]) for t in (values, at))
        best = values.amax((1, 3)) if largest else values.amin((1, 3))
        index = torch.where(values == best[:, None, :, None], at, 2**31 - 1).amin((1, 3))
        return best.t(), index.t().long()

    def largest(self, k: int) -> Tensor:
        if k > 1:
            rows = self.x.transpose(0, 1).flatten(1).float() - self.mean.unsqueeze(1)
            return rows.abs().topk(k, dim=1).indices
        found = self._statistics(2, Cut(0, 1, self.count))
        if found is None:
            return self._torch().largest(k)
        out, each = found
        return self._first(out[1], out[2], each, largest=True)[1]

    def take(self, index: Tensor) -> Tensor:
        x = _flat(self.x)
        chosen = x[flat_index(index, x.shape[2])].float()
        return chosen - self.mean.unsqueeze(1) + self.taint.unsqueeze(1)

    def extremes(self, cut: Cut) -> Extremes:
        found = self._statistics(3, cut)
        if found is None:
            return self._torch().extremes(cut)
        (_, high, high_at, low, low_at), each = found
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
        y = affine(x, of._replace(activation=None, relu=False), torch.float32)
        y = y if of.activation is None else round_to(y, of.activation)
        return (y.relu_() if of.relu else y).to(dtype)
    kernel = _made("normalize", SOURCES[x.dtype], target, of.relu, _planes(x))
    if kernel is None:
        return norm_passes.affine(x, of, dtype)
    y = torch.empty_like(x, dtype=dtype)
    _run(kernel, x.numel(), *_size(x), x, y, *of[:3])
    return y


def _codes(x: Tensor, of: Affine, format: IntFormat) -> Any:
    numbers = SOURCES[x.dtype], TARGETS[format.dtype], of.relu, _ROUNDINGS[of.activation]
    return _made("codes", *numbers, _planes(x))


def makes_codes(x: Tensor, of: Affine, format: IntFormat) -> bool:
    """Whether there is a kernel for `codes`."""
    return _codes(x, of, format) is not None


def codes(
    x: Tensor, of: Affine, scale: Tensor, zero_point: Tensor | None, format: IntFormat
) -> Tensor:
    """round(y / scale) + zero_point, clamped to the format: y's elements, in x's layout, without
    y.  scale, zero_point: one entry.  Only where `makes_codes`."""
    elements = torch.empty_like(x, dtype=format.dtype)
    zero = 0 if zero_point is None else zero_point
    bounds = ctypes.addressof(constants(format, None))
    _run(
        _codes(x, of, format), x.numel(), *_size(x), x, elements, *of[:3], scale, zero, bounds
    )  # fmt: skip
    return elements


def _relu(of: Affine) -> tuple[bool, int]:
    """Whether there is one, and what y is rounded to before it."""
    return of.relu, _ROUNDINGS[of.activation] if of.relu else 0


def aligned(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient in x's layout and a dtype that the kernels read."""
    grad = grad if grad.dtype in SOURCES else grad.float()
    if _is_dense(grad, _planes(x)):
        return grad
    return torch.empty_like(x, dtype=grad.dtype).copy_(grad)


def sums(x: Tensor, grad: Tensor, of: Affine, extra: Extra) -> Sums:
    """The sums that the gradient needs; g: grad (`aligned`), where the ReLU was on."""
    planes, (_, width, channels) = _planes(x), _size(x)
    kernel = _made(
        "backward_sums", SOURCES[x.dtype], SOURCES[grad.dtype], extra == "squares",
        extra == "signs", *_relu(of), planes,
    )  # fmt: skip
    if kernel is None:
        return norm_passes.sums(x, grad, of, extra)
    blocks = _blocks(planes, width, Cut(0, 1, x.numel() // channels))
    plain, product, more = (blocks.partial(of.mean, channels) for _ in range(3))
    _run(
        kernel, x.numel(), channels, width, blocks.lanes, x, blocks.starts, plain.shape[0], grad,
        *of[:3], plain, product, more,
    )  # fmt: skip
    return Sums(_added(plain), _added(product), None if extra is None else _added(more))


def grad_input(
    x: Tensor, grad: Tensor, of: Affine, offset: Tensor, slope: Slope | None, dtype: torch.dtype
) -> Tensor:
    """g * scale + offset + slope, in `dtype`."""
    kernel = _made(
        "backward_input", SOURCES[x.dtype], SOURCES[grad.dtype], _TARGETS[dtype, None],
        slope is not None, slope is not None and slope.of == "sign", *_relu(of), _planes(x),
    )  # fmt: skip
    if kernel is None:
        return norm_passes.grad_input(x, grad, of, offset, slope, dtype)
    result = torch.empty_like(x, dtype=dtype)
    factor = offset if slope is None else slope.factor
    _run(kernel, x.numel(), *_size(x), x, grad, result, *of[:3], factor, offset)
    return result


def add_at(grad: Tensor, index: Tensor, value: Tensor) -> Tensor:
    """grad, a result of `grad_input`, with value (C, J) added at index (C, J) into each channel's
    N * S, in place."""
    flat = _flat(grad)
    flat.index_put_(flat_index(index, flat.shape[2]), value, accumulate=True)
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
