"""The passes of `norm_passes`, compiled, for contiguous and channels-last CPU tensors of up to 32
bits.

Sums are taken in fp32 over at most some hundred elements and in fp64 over those, whatever the
number of threads.  A pass whose kernel cannot be had is torch's.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from quantizers import FloatFormat, IntFormat, bf16, fp16, kernels, round_to
from quantizers.kernels.plan import constants
from quantizers.kernels.serving import SOURCES, TARGETS

from .. import passes as norm_passes
from ..passes import Affine, Extra, Slope, Sums, flat_index
from ..samples import Cut
from .channels import sample as sample
from .memory import added, by_plane, in_blocks, is_dense, is_planes, run, size

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


def _made(name: str, *numbers: int) -> Any:
    return kernels.made("qtrain.norms.kernels.compiled_passes", name, *numbers)


def serves(x: Tensor, activation: FloatFormat | None = None, relu: bool = False) -> bool:
    """Whether the kernels take x (contiguous or channels-last, few enough elements to number) and
    an output rounded to `activation`, then to 0 where negative with relu."""
    return (
        kernels.serves(x)
        and x.dtype in SOURCES
        and 0 < x.numel() < 2**31
        and (is_dense(x, True) or is_dense(x, False))
        and (not relu or activation in _ROUNDINGS)
        and _made("normalize", SOURCES[x.dtype], 0, False, is_planes(x)) is not None
    )


def affine(x: Tensor, of: Affine, dtype: torch.dtype) -> Tensor:
    """y in `dtype`."""
    target = _TARGETS.get((dtype, of.activation))
    if target is None:
        y = affine(x, of._replace(activation=None, relu=False), torch.float32)
        y = y if of.activation is None else round_to(y, of.activation)
        return (y.relu_() if of.relu else y).to(dtype)
    kernel = _made("normalize", SOURCES[x.dtype], target, of.relu, is_planes(x))
    if kernel is None:
        return norm_passes.affine(x, of, dtype)
    y = torch.empty_like(x, dtype=dtype)
    run(kernel, x.numel(), *size(x), x, y, *of[:3])
    return y


def _codes(x: Tensor, of: Affine, format: IntFormat) -> Any:
    numbers = SOURCES[x.dtype], TARGETS[format.dtype], of.relu, _ROUNDINGS[of.activation]
    return _made("codes", *numbers, is_planes(x))


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
    run(
        _codes(x, of, format), x.numel(), *size(x), x, elements, *of[:3], scale, zero, bounds
    )  # fmt: skip
    return elements


def _relu(of: Affine) -> tuple[bool, int]:
    """Whether there is one, and what y is rounded to before it."""
    return of.relu, _ROUNDINGS[of.activation] if of.relu else 0


def aligned(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient in x's layout and a dtype that the kernels read."""
    grad = grad if grad.dtype in SOURCES else grad.float()
    if is_dense(grad, is_planes(x)):
        return grad
    return torch.empty_like(x, dtype=grad.dtype).copy_(grad)


def sums(x: Tensor, grad: Tensor, of: Affine, extra: Extra) -> Sums:
    """The sums that the gradient needs; g: grad (`aligned`), where the ReLU was on."""
    planes, (_, width, channels) = is_planes(x), size(x)
    kernel = kernels.made(
        "qtrain.norms.kernels.compiled_statistics", "backward_sums", SOURCES[x.dtype],
        SOURCES[grad.dtype], extra == "squares", extra == "signs", *_relu(of), planes,
    )  # fmt: skip
    if kernel is None:
        return norm_passes.sums(x, grad, of, extra)
    blocks = in_blocks(planes, width, Cut(0, 1, x.numel() // channels))
    plain, product, more = (blocks.partial(of.mean, channels) for _ in range(3))
    run(
        kernel, x.numel(), channels, width, blocks.lanes, x, blocks.starts, plain.shape[0], grad,
        *of[:3], plain, product, more,
    )  # fmt: skip
    return Sums(added(plain), added(product), None if extra is None else added(more))


def grad_input(
    x: Tensor, grad: Tensor, of: Affine, offset: Tensor, slope: Slope | None, dtype: torch.dtype
) -> Tensor:
    """g * scale + offset + slope, in `dtype`."""
    kernel = _made(
        "backward_input", SOURCES[x.dtype], SOURCES[grad.dtype], _TARGETS[dtype, None],
        slope is not None, slope is not None and slope.of == "sign", *_relu(of), is_planes(x),
    )  # fmt: skip
    if kernel is None:
        return norm_passes.grad_input(x, grad, of, offset, slope, dtype)
    result = torch.empty_like(x, dtype=dtype)
    factor = offset if slope is None else slope.factor
    run(kernel, x.numel(), *size(x), x, grad, result, *of[:3], factor, offset)
    return result


def add_at(grad: Tensor, index: Tensor, value: Tensor) -> Tensor:
    """grad, a result of `grad_input`, with value (C, J) added at index (C, J) into each channel's
    N * S, in place."""
    flat = by_plane(grad)
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
    run(kernel, x.numel(), x.numel(), x, y, result, off)
    return result, off


def masked(grad: Tensor, off: Tensor) -> Tensor | None:
    """The gradient, 0 where off, or None where no kernel serves it; off: dense."""
    alike = grad.dtype in SOURCES and grad.stride() == off.stride() and kernels.serves(grad)
    kernel = _made("masked", SOURCES[grad.dtype]) if alike and grad.numel() else None
    if kernel is None:
        return None
    result = torch.empty_like(grad)
    run(kernel, grad.numel(), grad.numel(), grad, result, off)
    return result
