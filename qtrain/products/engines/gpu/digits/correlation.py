"""The exact gradient of a convolution's weight on fp16 tensor cores: an operation of torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quantizers.devices.by_device import register
from quantizers.kernels.gpu.device import OPTIONS, bound
from quantizers.kernels.gpu.launcher import launched

from ..layout import Layout
from .digits import Cut, combine, digits, dtype_of, folded, is_folded, length

KERNELS = "qtrain.products.engines.gpu.digits.triton_correlation"
#: programs that keep a GPU busy, and the pixels that are worth one
_PROGRAMS, _PIXELS = 512, 512


def _correlate(
    small: Tensor,
    large: Tensor,
    like: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    zero_small: Tensor | None,
    zero_large: Tensor | None,
    reach: list[int],
    scale: Tensor | None,
) -> Tensor:
    y = _gradient(small, large, like, reach, scale)
    if y.numel() == 0:
        return y
    cut, other = Cut.of(reach[0]), Cut.of(reach[1])
    out = (y.transpose(1, 2) if transposed else y).permute(0, 1, 3, 4, 2)
    groups, _, *kernel, channels = out.shape
    in_rows = is_folded(groups, channels, kernel[1], dilation)
    beside = padding[1] if in_rows else 0
    small, large = small.unflatten(1, (groups, -1)), large.unflatten(1, (groups, -1))
    x = digits(small.permute(0, 3, 4, 1, 2), zero_small, cut.digits, 0)
    z = digits(large.permute(0, 3, 4, 1, 2), zero_large, other.digits, 0, beside)
    found = out
    if in_rows:
        z, kernel = folded(z, kernel[1], stride[1]), [kernel[0], 1]
        stride, padding = [stride[0], 1], [padding[0], 0]
        found = torch.empty_like(out, memory_format=torch.contiguous_format)
        found = found.flatten(3).unsqueeze(3)
    produced, summed = out.shape[1], z.shape[5]
    pixels, taps = math.prod(x.shape[1:4]), math.prod(kernel)
    tall, across = (
        128 if n > 64 else 64 if n > 32 else 32
        for n in (cut.digits * produced, other.digits * summed)
    )
    deep = 64
    tiles = taps * -(-cut.digits * produced // tall) * -(-other.digits * summed // across)
    # as many as keep the GPU busy, and as a part's sums need to stay within int32
    splits = max(min(_PROGRAMS // (tiles * groups), pixels // _PIXELS), 1)
    steps = max(min(-(-pixels // (splits * deep)), length(cut, other, 2**31) // deep), 1)
    each = steps * deep
    splits = max(-(-pixels // each), 1)
    parts = torch.empty(
        (splits, cut.digits, groups * produced * taps, other.digits, summed),
        dtype=torch.int32,
        device=x.device,
    )
    launched(
        KERNELS, "correlate", (tiles, splits, groups), x, z, parts, pixels, each, produced, summed,
        cut.digits, other.digits, groups, *z.shape[2:4], *x.shape[2:4], x.stride(0), z.stride(0),
        *z.stride()[1:4], *parts.stride()[:2], *stride, *padding, *dilation, taps, kernel[1],
        bound(steps), length(cut, other, 2**24) // deep,
        WIDE=Layout.of(x).is_wide or Layout.of(z).is_wide, ROWS=tall, ACROSS=across, DEEP=deep,
        num_warps=8 if tall * across >= 128 * 128 else 4, num_stages=3, **OPTIONS,
    )  # fmt: skip
    combine(parts, cut.digits, other.digits, found, scale, None, False)
    if in_rows:
        out.copy_(found.view(out.shape))
    return y


def _gradient(small: Tensor, large: Tensor, like: Tensor, *others: object) -> Tensor:
    reach, scale = others[-2:]
    terms = small.shape[0] * math.prod(small.shape[2:])
    narrow = dtype_of(reach[0] * reach[1] * terms)  # type: ignore[index]
    return torch.empty_like(like, dtype=narrow if scale is None else torch.float32)


correlate_digits = register(
    "qtrain::correlate_digits(Tensor small, Tensor large, Tensor like, int[] stride,"
    " int[] padding, int[] dilation, bool transposed, Tensor? zero_small, Tensor? zero_large,"
    " int[] reach, Tensor? scale) -> Tensor",
    _correlate,
    _gradient,
    "CPU",
    "CUDA",
)
