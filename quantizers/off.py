"""Off: the quantizer that leaves a tensor as it is."""

from __future__ import annotations

from torch import Tensor

from . import checks
from .qtensor import QTensor
from .ranges.rules import State


class Off:
    """The quantizer that does nothing: the elements are x itself, in its own dtype."""

    def __call__(
        self,
        x: Tensor,
        *,
        state: State | None = None,
        key: Tensor | None = None,
        training: bool = True,
    ) -> QTensor:
        checks.instance("x", x, Tensor, "a tensor")
        return QTensor(x, block=tuple(max(size, 1) for size in x.shape))

    def __repr__(self) -> str:
        return "OFF"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Off)

    def __hash__(self) -> int:
        return hash(Off)


OFF = Off()
