"""PACT: a learned upper end of what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .. import checks
from ..devices.numbers import divided
from ..formats import IntFormat
from ..granularity import Granularity
from ..ranges.rules import State
from .stepped import Stepped


@dataclass(frozen=True, kw_only=True)
class PACT(Stepped):
    """Parameterized clipping activation: x clipped to 0 .. clip, in steps of clip / (2^b - 1); see
    `Stepped` for values, format (unsigned) and granularity.

    start   the clip to begin with, above 0; None: the largest element of a first tensor, or its
            largest magnitude where none is above 0

        d value / d clip = 1 where x >= clip, else 0
        d value / d x    = 1 where 0 <= x < clip, else 0

    It takes the place of a ReLU: what is negative is 0.  Choi et al. 2018, "PACT: Parameterized
    Clipping Activation for Quantized Neural Networks", arXiv 1805.06085, equations 1 to 3.  The
    paper also decays the clips, as an optimizer does whose weight_decay covers them.  A clip below
    0 counts as 0.
    """

    if TYPE_CHECKING:  # the format takes a name

        def __init__(
            self,
            *,
            format: IntFormat | str,
            granularity: Granularity = ...,
            start: float | None = ...,
        ) -> None: ...

    start: float | None = None
    learned: ClassVar[tuple[str, ...]] = ("clip",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format.signed:
            raise ValueError(
                f"format: got {self.format}, need an unsigned one, IntFormat("
                f"{self.format.bits}, signed=False): a PACT keeps nothing below 0"
            )
        if self.start is not None:
            checks.number("start", self.start, low=0, positive=True)

    def _lost(self, x: Tensor) -> float:
        """None: to clip is what it is for."""
        return 0.0

    def step_of(self, state: State) -> Tensor:
        return divided(state["clip"].clamp(min=0), self.format.high)

    def fit(self, x: Tensor, state: State) -> None:
        """Set the clip by x, in place."""
        state["clip"].copy_(self._start(self._first(x)))

    def _start(self, x: Tensor) -> Tensor:
        if self.start is not None:
            return torch.tensor(self.start)
        found = self._largest(x)
        return torch.where(found > 0, found, x.abs().max().double())

    def backward(self, grad: Tensor, x: Tensor, state: State) -> tuple[Tensor, State]:
        """grad, x: one shape -> (the gradient of x, in grad's dtype, {"clip": its own})."""
        given, (grad, x) = grad.dtype, self._real(grad, x)
        clip = self._spread(self._checked(state, x)["clip"], x).to(x.dtype)
        above = x >= clip
        inside = (x >= 0) & ~above
        return (grad * inside).to(given), {"clip": self._summed(grad * above).float()}
