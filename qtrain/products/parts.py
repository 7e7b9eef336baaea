"""A quantized operand in parts: the tensors, which autograd must see, and what is known besides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from quantizers import QTensor


def tensors_of(q: QTensor) -> tuple[Tensor | None, ...]:
    """elements, scale, zero point and outer scale."""
    return q.elements, q.scale, q.zero_point, q.outer


def rest_of(q: QTensor) -> tuple[Any, ...]:
    """format and block."""
    return q.format, q.block


def joined(tensors: Sequence[Any], rest: Sequence[Any]) -> QTensor:
    """The operand of `tensors_of` and `rest_of`."""
    elements, scale, zero_point, outer = tensors
    fmt, block = rest
    return QTensor(elements, scale, zero_point, fmt, block, outer)
