"""Quantized operands in parts: the tensors, which autograd must see, and what is known besides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from quantizers import QTensor

#: the format and block of an operand, and which of its tensors there are; None: no operand
Meta = tuple[Any, ...] | None
#: elements, scale, zero point and outer scale, as they lie in a QTensor
TENSORS = (0, 1, 2, 5)


def tensors_of(*operands: QTensor | None) -> list[Tensor | None]:
    """The four tensors of each; all None where there is no operand."""
    found: list[Any] = []
    for q in operands:
        found += (None,) * 4 if q is None else (*q[:3], q[5])
    return found


def joined(tensors: Sequence[Any], rest: Sequence[Any]) -> QTensor:
    """The operand of `tensors_of`, and its format and block."""
    return QTensor(tensors[0], tensors[1], tensors[2], rest[0], rest[1], tensors[3])


def packed(operands: Sequence[QTensor | None]) -> tuple[tuple[Meta, ...], list[Tensor]]:
    """(what is known of each, all tensors that there are)."""
    meta: list[Meta] = []
    tensors: list[Tensor] = []
    for q in operands:
        if q is None:
            meta.append(None)
            continue
        known: list[Any] = [q[3], q[4]]
        for place in TENSORS:
            part: Any = q[place]
            known.append(part is not None)
            if part is not None:
                tensors.append(part)
        meta.append(tuple(known))
    return tuple(meta), tensors


def unpacked(meta: Sequence[Meta], tensors: Sequence[Tensor]) -> list[QTensor | None]:
    """The operands of `packed`."""
    found: list[QTensor | None] = []
    place = 0
    for known in meta:
        if known is None:
            found.append(None)
            continue
        parts: list[Any] = []
        for there in known[2:]:
            parts.append(tensors[place] if there else None)
            place += there
        found.append(QTensor(parts[0], parts[1], parts[2], known[0], known[1], parts[3]))
    return found


class Seen:
    """A tensor as a probe saw it, for as long as nothing is written into it."""

    def __init__(self, x: Tensor) -> None:
        self._x = x.detach()  # shares its version
        self._version = self._x._version

    def unchanged(self) -> Tensor | None:
        return self._x if self._x._version == self._version else None
