"""From a tensor and its scale to elements, by torch's own operations or faster."""

from __future__ import annotations

import torch
from torch import Tensor

from .devices.by_device import ByDevice
from .formats import FloatFormat, Format, TableFormat
from .granularity import expand
from .kernels import quantize as kernels
from .kernels.gpu import quantizers as gpu
from .noise import random_bits
from .rounding import Rounding, nearest_even, round_to_float
from .table_rounding import round_to_table


def as_real(x: Tensor) -> Tensor:
    """x in the dtype it is quantized from: fp32 for half precision (exact), fp64 stays fp64."""
    return x if x.dtype == torch.float64 else x.float()


def _elements_of(
    x: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    block: tuple[int, ...],
    format: Format,
    rounding: Rounding = nearest_even,
    key: Tensor | None = None,
    multiplied: bool = False,
) -> Tensor:
    """round(x / scale) + zero_point, clamped to the format: see Quantizer.

    x: fp16, bf16, fp32 or fp64; scale, zero_point: one entry a block, None for 1 and for 0; key:
    0-d int64, for a stochastic rounding; multiplied: x * scale in the place of x / scale.  -> the
    format's integer dtype, or fp32 (fp64 for fp64 x), x's shape.
    """
    scaled = x = as_real(x)
    if scale is not None and multiplied:
        scaled = x * expand(scale, x.shape, block)
    elif scale is not None:
        # x / inf = 0: where the scale is zero, so is every element, without a branch
        divisor = torch.where(scale == 0, float("inf"), scale)
        scaled = x / expand(divisor, x.shape, block)
    bits = None if key is None or not rounding.random_bits else random_bits(key, x.shape)
    if isinstance(format, FloatFormat):
        overflow = None if scale is None else format.when_clipped
        return round_to_float(scaled, format, rounding, bits, overflow=overflow, source=x)
    if isinstance(format, TableFormat):
        return round_to_table(scaled, format, rounding, bits, source=x)
    elements = rounding(scaled, bits)
    if zero_point is not None:
        elements = elements + expand(zero_point, x.shape, block)
    elements = elements.clamp_(format.low, format.high)
    # what a NaN is as an integer depends on the processor; the scale tells of it
    return elements.nan_to_num_(0.0).to(format.dtype)


elements_of = ByDevice(_elements_of, cpu=kernels.elements, cuda=gpu.elements)
