"""The functions that multiply, and which layers compute a call of them.

Each entry reads the arguments of its function and asks `Calling` for layers; where one of them is
left, the whole call is torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers.attention import QScaledDotProductAttention
from ...layers.calls import QConvolutionCall, QLinearCall, QTransposedConvolutionCall
from ...layers.matmul import QMatmul
from .attention import attention, multihead_attention
from .contractions import bilinear, chain_matmul, einsum, inner, multi_dot, tensordot
from .convolutions import conv, conv_transpose
from .grouped import grouped_mm
from .matrices import (
    addbmm,
    addmm,
    addmv,
    baddbmm,
    dot,
    linear,
    linear_cross_entropy,
    matmul,
    matrices,
    mv,
    reversed_matmul,
    vecdot,
)

#: the layers, by the word that their names begin with
LAYERS: dict[str, type[nn.Module]] = {
    "linear": QLinearCall,
    "matmul": QMatmul,
    "conv": QConvolutionCall,
    "conv_transpose": QTransposedConvolutionCall,
    "attention": QScaledDotProductAttention,
}

#: function, or tensor's method -> what reads its call
FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.linear: linear,
    torch.matmul: matmul,
    torch.linalg.matmul: matmul,
    Tensor.matmul: matmul,
    Tensor.__matmul__: matmul,
    Tensor.__rmatmul__: reversed_matmul,
    torch.mm: matrices,
    Tensor.mm: matrices,
    torch.bmm: matrices,
    Tensor.bmm: matrices,
    torch.mv: mv,
    Tensor.mv: mv,
    torch.dot: dot,
    Tensor.dot: dot,
    torch.vdot: dot,
    Tensor.vdot: dot,
    torch.linalg.vecdot: vecdot,
    torch.addmm: addmm,
    Tensor.addmm: addmm,
    torch.addmv: addmv,
    Tensor.addmv: addmv,
    torch.baddbmm: baddbmm,
    Tensor.baddbmm: baddbmm,
    torch.addbmm: addbmm,
    Tensor.addbmm: addbmm,
    torch.einsum: einsum,
    torch.tensordot: tensordot,
    torch.inner: inner,
    Tensor.inner: inner,
    torch.linalg.multi_dot: multi_dot,
    torch.chain_matmul: chain_matmul,
    torch._grouped_mm: grouped_mm,
    F.bilinear: bilinear,
    F.scaled_dot_product_attention: attention,
    F.multi_head_attention_forward: multihead_attention,
    F.conv1d: conv,
    F.conv2d: conv,
    F.conv3d: conv,
    torch.conv1d: conv,
    torch.conv2d: conv,
    torch.conv3d: conv,
    F.conv_transpose1d: conv_transpose,
    F.conv_transpose2d: conv_transpose,
    F.conv_transpose3d: conv_transpose,
}
if hasattr(F, "linear_cross_entropy"):  # from torch 2.12 on
    FUNCTIONS[F.linear_cross_entropy] = linear_cross_entropy
