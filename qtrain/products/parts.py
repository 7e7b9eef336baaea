"""Quantized operands in parts: the tensors, which autograd must see, and what is known besides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from quantizers import QTensor

#: which tensors of an operand there are, its format and block; None: no operand
Meta = tuple[Any, ...] | None


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


def packed(operands: Sequence[QTensor | None]) -> tuple[tuple[Meta, ...], list[Tensor]]:
    """(what is known of each, all tensors that there are)."""
    meta: list[Meta] = []
    tensors: list[Tensor] = []
    for q in operands:
        if q is None:
            meta.append(None)
            continue
        parts = tensors_of(q)
        tensors += [part for part in parts if part is not None]
        meta.append((tuple([part is not None for part in parts]), *rest_of(q)))
    return tuple(meta), tensors


def unpacked(meta: Sequence[Meta], tensors: Sequence[Tensor]) -> list[QTensor | None]:
    """The operands of `packed`."""
    given: Iterator[Tensor] = iter(tensors)
    found: list[QTensor | None] = []
    for kept in meta:
        if kept is None:
            found.append(None)
            continue
        there, *rest = kept
        found.append(joined([next(given) if own else None for own in there], rest))
    return found
