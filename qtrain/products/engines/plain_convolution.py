"""A convolution's product by torch's own kernels, in a graph that torch.compile makes for CUDA too.

cuDNN, and NNPACK on a CPU without oneDNN, may convolve by Winograd or FFT, as the shape is, whose
sums of integers are not exact; torch's own are matrix products of unfolded operands.  A graph
cannot turn cuDNN off, so that it is one operation there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from quantizers.devices.by_device import register

from ...autograd.selective import shown
from ..convolution import Convolution
from ..product import Product


def has_cudnn(device: torch.device) -> bool:
    """Whether convolutions may be cuDNN's there."""
    return device.type == "cuda"


def plain_product(product: Product, a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """product.run, by no kernel whose algorithm depends on the shape."""
    operation, kind = product
    if not isinstance(operation, Convolution):
        return shown(operation.product, kind, a, b, like)
    if not has_cudnn(a.device):
        if not a.is_cpu or a.dtype != torch.float32 or torch.compiler.is_compiling():
            return shown(operation.product, kind, a, b, like)
        allowed = torch._C._get_nnpack_enabled()
        torch._C._set_nnpack_enabled(False)
        try:
            return shown(operation.product, kind, a, b, like)
        finally:
            torch._C._set_nnpack_enabled(allowed)
    if torch.compiler.is_compiling():
        result: Tensor = _whole(
            a, b, like, kind, operation.stride, operation.padding, operation.dilation,
            operation.groups, operation.transposed, operation.output_padding,
        )  # fmt: skip
        return result
    with torch.backends.cudnn.flags(enabled=False):
        return shown(operation.product, kind, a, b, like)


def full_precision() -> AbstractContextManager[Any]:
    """cuDNN without TF32, which keeps 11 bits of an operand, as torch allows it from the start.

    Not in a compiled graph, which takes the setting that it finds.
    """
    if torch.compiler.is_compiling():
        return nullcontext()
    own = torch.backends.cudnn
    return own.flags(
        own.enabled, own.benchmark, own.benchmark_limit, own.deterministic, allow_tf32=False
    )


@contextmanager
def tensor_float32() -> Iterator[None]:
    """cuDNN and cuBLAS with TF32."""
    own, matrices = torch.backends.cudnn, torch.backends.cuda.matmul
    before = matrices.fp32_precision
    matrices.fp32_precision = "tf32"
    try:
        with own.flags(
            own.enabled, own.benchmark, own.benchmark_limit, own.deterministic, allow_tf32=True
        ):
            yield
    finally:
        matrices.fp32_precision = before


def _convolution(a: Tensor, b: Tensor, like: Tensor, kind: Any, *geometry: Any) -> Tensor:
    with torch.backends.cudnn.flags(enabled=False):
        return Convolution(*geometry).product(kind, a, b, like).contiguous()


_whole = register(
    "qtrain::plain_convolution(Tensor a, Tensor b, Tensor like, str kind, int[] stride,"
    " int[] padding, int[] dilation, int groups, bool transposed, int[] output_padding) -> Tensor",
    _convolution,
    _convolution,
    "CompositeExplicitAutograd",
)
