"""An int8 convolution as one operation of torch, also in the graphs that it compiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quantizers.by_device import register
from quantizers.kernels.gpu.device import OPTIONS, bound, there
from quantizers.kernels.serving import imported

KERNELS = "qtrain.products.engines.gpu.triton_convolution"
#: how a result (N, G, P, H, W) lies in memory: its axes, the outermost first
_ORDERS: dict[str, tuple[int, ...]] = {
    "contiguous": (0, 1, 2, 3, 4),
    "channels_last": (0, 3, 4, 1, 2),
    "matrices": (0, 1, 3, 4, 2),
}


def _tiles(rows: int, produced: int, summed: int) -> tuple[int, int, int, int]:
    """Rows, columns and depth of a tile, and its warps."""
    deep = 128 if summed >= 256 else 64 if summed > 32 else 32
    across = 128 if produced >= 128 and rows >= 8192 else 64 if produced > 32 else 32
    tall = 128 if rows >= 4096 else 64
    return tall, across, deep, 8 if tall * across >= 128 * 128 else 4


def _result(x: Tensor, w: Tensor, size: Sequence[int], layout: str, scale: Tensor | None) -> Tensor:
    shape = [x.shape[0], w.shape[0], w.shape[1], *size]
    order = _ORDERS[layout]
    dtype = torch.int32 if scale is None else torch.float32
    y = torch.empty([shape[axis] for axis in order], dtype=dtype, device=x.device)
    return y.permute([order.index(axis) for axis in range(5)])


def _summed_last(x: Tensor) -> Tensor:
    """With the summed channels, axis 2, one after the other in memory."""
    if x.stride(2) == 1 or x.shape[2] == 1:
        return x
    return x.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)


def _convolve(
    x: Tensor,
    w: Tensor,
    size: list[int],
    layout: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    scattered: bool,
    zero_point: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """x, w and what is returned, (N, G, P, *size), fp32 where there is a scale: see convolve."""
    launched = imported(KERNELS)
    y = _result(x, w, size, layout, scale)
    batch, groups, produced, out_height, out_width = y.shape
    rows, taps = batch * out_height * out_width, w.shape[3] * w.shape[4]
    if y.numel() == 0:
        return y
    w = _summed_last(w)
    unsigned = x.dtype is torch.uint8
    with there(x):
        if zero_point is None or (scattered and not unsigned):
            x = _summed_last(x)
        elif scattered:
            x = _prepared(x, zero_point, [0, 0])
        else:
            x, padding = _prepared(x, zero_point, padding), [0, 0]
        summed, (height, width) = x.shape[2], x.shape[3:]
        tall, across, deep, warps = _tiles(rows, produced, summed)
        blocks = -(-summed // deep)
        launched.convolve[(-(-rows // tall) * -(-produced // across) * groups,)](
            x,
            w,
            y,
            w if scale is None else scale,
            w if bias is None else bias.contiguous(),
            w if zero_point is None else zero_point,
            w if zero_point is None else w.sum((2, 3, 4), dtype=torch.int32),
            rows,
            produced,
            summed,
            height,
            width,
            out_height,
            out_width,
            *(x.stride(axis) for axis in (0, 1, 3, 4)),
            *(w.stride(axis) for axis in (0, 1, 3, 4)),
            *y.stride(),
            0 if scale is None else scale.stride(0),
            *stride,
            *padding,
            *dilation,
            w.shape[4],
            blocks,
            bound(taps * blocks),
            WIDE=_is_wide(x, y),
            SCATTER=scattered,
            AFFINE=zero_point is not None,
            FILLED=zero_point is not None and scattered,
            UNSIGNED=unsigned,
            SCALED=scale is not None,
            BIASED=bias is not None,
            ROWS=tall,
            ACROSS=across,
            DEEP=deep,
            BAND=8,
            num_warps=warps,
            num_stages=3,
            **OPTIONS,
        )
    return y


def _is_wide(*tensors: Tensor) -> bool:
    """Whether a place in one of them, a tile beyond its end included, passes int32."""
    spans = (
        sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True)) for x in tensors
    )
    return max(spans) >= 2**30


def _prepared(x: Tensor, zero_point: Tensor, padding: Sequence[int]) -> Tensor:
    """x as int8, padded by the zero point, its channels last in memory."""
    launched = imported(KERNELS)
    batch, groups, summed, height, width = x.shape
    tall, wide = height + 2 * padding[0], width + 2 * padding[1]
    y = torch.empty((batch, tall, wide, groups, summed), dtype=torch.int8, device=x.device)
    pixels, channels = batch * tall * wide, groups * summed
    flat = x.flatten(1, 2)
    across = min(1 << (channels - 1).bit_length(), 128)
    down = 4096 // across
    launched.prepare[(-(-pixels // down) * -(-channels // across),)](
        flat,
        y,
        zero_point,
        pixels,
        channels,
        height,
        width,
        tall,
        wide,
        *flat.stride(),
        *padding,
        WIDE=_is_wide(x, y),
        UNSIGNED=x.dtype is torch.uint8,
        PIXELS=down,
        CHANNELS=across,
        num_warps=8,
    )
    return y.permute(0, 3, 4, 1, 2)


def _shape(x: Tensor, w: Tensor, size: list[int], layout: str, *others: Any) -> Tensor:
    return _result(x, w, size, layout, scale=others[-2])


convolve_int8 = register(
    "qtrain::convolve_int8(Tensor x, Tensor w, SymInt[] size, str layout, int[] stride,"
    " int[] padding, int[] dilation, bool scattered, Tensor? zero_point, Tensor? scale,"
    " Tensor? bias) -> Tensor",
    _convolve,
    _shape,
    "CPU",
    "CUDA",
)
