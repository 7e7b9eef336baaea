"""Exact products of int8 operands on the tensor cores of a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from quantizers.kernels.gpu.device import serves

from ....convolution import Convolution
from ....plan import planned as kept
from ....product import Product
from ...epilogue import Epilogue
from ...task import Task
from ..convolved import convolved, product_of
from ..engine import TritonEngine
from ..layout import Layout
from .convolution import KERNELS, Planned, convolve_int8, copied, planned, window_of


class _Direct(NamedTuple):
    """What computes a product from its operands' memory.

    read     of a and b: what of it is to be copied, and how the copy lies; None: itself is read
    result   how it lies
    """

    run: Planned
    read: tuple[tuple[Layout, Layout] | None, ...]
    result: Layout

    def __call__(
        self,
        a: Tensor,
        b: Tensor,
        zero_point: Tensor | None,
        scales: Sequence[Tensor],
        bias: Tensor | None,
    ) -> Tensor:
        a, b = (
            x if of is None else copied(x.as_strided(of[0].shape, of[0].strides), of[1])
            for x, of in zip((a, b), self.read, strict=True)
        )
        return self.run(a, b, self.result, zero_point, scales, bias)


@kept
def _direct(
    product: Product,
    a: Layout,
    b: Layout,
    like: Layout,
    shifted: bool,
    scales: tuple[Layout, ...],
    biased: bool,
) -> _Direct | None:
    """For operands that lie so.  None where the scales are not the channels'."""
    given, weight, wanted = (layout.on_meta() for layout in (a, b, like))
    after = Epilogue(tuple(layout.on_meta() for layout in scales))
    to = convolved(product, given, weight, wanted)
    steps = after.scales_of(product.operation, to.channels)
    if steps is None:
        return None
    pairs = [(given, to.x), (weight, to.w)]
    by = window_of(to.size, to.layout, *to.window, to.scattered, shifted, steps, biased)
    run = planned(Layout.of(to.x), Layout.of(to.w), by)
    y = run.result.on_meta()
    result = product_of(y, product, given, wanted)
    pairs += [(y, result), *zip(after.scales, steps, strict=True)]
    if result.numel() != y.numel() or not all(_same_memory(*x) for x in pairs):
        return None
    read = tuple(
        None if copy is None else (Layout.of(x), copy)
        for x, copy in ((to.x, run.copy_x), (to.w, run.copy_w))
    )
    return _Direct(run, read, Layout.of(result))


def _same_memory(x: Tensor, view: Tensor) -> bool:
    same = x.untyped_storage()._cdata == view.untyped_storage()._cdata
    return same and view.storage_offset() == 0


def _narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Integers that both dtypes hold."""
    if x.dtype is dtype:
        return x
    return x.view(dtype) if x.dtype.itemsize == 1 else x.to(dtype)


class TritonInt8(TritonEngine):
    """int8 by int8 or uint8, summed in int32, scale and bias in the same kernel.

    Forward and grad_input of convolutions of one or two axes, all products of matrices.
    """

    name = "triton_int8"
    kernels = KERNELS
    takes_zero_point = True

    def supports(self, task: Task) -> bool:
        operation, kind = task.product
        if isinstance(operation, Convolution):
            if kind == "grad_weight" or len(operation.stride) > 2:
                return False
        eight = task.a.within(-128, 127) or task.a.within(0, 255)
        return eight and task.b.within(-128, 127) and task.bound < 2**31

    def product(
        self,
        task: Task,
        a: Tensor,
        b: Tensor,
        like: Tensor,
        *,
        zero_point: Tensor | None = None,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        product, operation = task.product, task.product.operation
        unsigned = not task.a.within(-128, 127)
        if unsigned and zero_point is None:
            zero_point = torch.zeros((), dtype=torch.int32, device=a.device)
        a, b = _narrow(a, torch.uint8 if unsigned else torch.int8), _narrow(b, torch.int8)
        after = Epilogue() if epilogue is None else epilogue
        bias = None
        if after.scales and after.bias is not None:
            bias = after.bias.float().contiguous()
        if serves(a, b, zero_point, bias, *after.scales):
            run = _direct(
                product, Layout.of(a), Layout.of(b), Layout.of(like), zero_point is not None,
                tuple([Layout.of(scale) for scale in after.scales]), bias is not None,
            )  # fmt: skip
            if run is not None:
                result = run(a, b, zero_point, after.scales, bias)
                return result if epilogue is None or after.scales else epilogue(operation, result)
        to = convolved(product, a, b, like)
        scales = after.scales_of(operation, to.channels) or []
        y: Tensor = convolve_int8(
            to.x, to.w, to.size, to.layout, *to.window, to.scattered, zero_point, scales,
            bias if scales else None,
        )  # fmt: skip
        result = product_of(y, product, a, like)
        return result if epilogue is None or scales else epilogue(operation, result)
