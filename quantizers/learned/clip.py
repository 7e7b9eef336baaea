"""LearnedClip: the ends of what is kept, learned as a logarithm."""

from __future__ import annotations

import math
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
class LearnedClip(Stepped):
    """Integers up to a learned clip, in steps of 2^log2_clip / high; see `Stepped` for values,
    format and granularity.

    power_of_two   steps are 2^ceil(log2_clip) / 2^(b - 1), of unsigned ones / 2^b, b the bits: the
                   paper's own; the gradient passes the ceil

    A first tensor sets the clip to its largest magnitude.

        d value / d log2_clip = step ln 2 (round(x / step) - x / step)   inside low .. high
                                step ln 2 low, step ln 2 high            below, above
        d value / d x         = 1 where low <= round(x / step) <= high, else 0

    Jain, Gural, Wu, Dick 2020, "Trained Quantization Thresholds for Accurate and Efficient
    Fixed-Point Inference of Deep Neural Networks", arXiv 1903.08066, equations 4 to 8.  A
    logarithm takes steps in proportion: one rate fits tensors of any size, gradients too.
    """

    if TYPE_CHECKING:  # the format takes a name

        def __init__(
            self,
            *,
            format: IntFormat | str,
            granularity: Granularity = ...,
            power_of_two: bool = ...,
        ) -> None: ...

    power_of_two: bool = False
    learned: ClassVar[tuple[str, ...]] = ("log2_clip",)
    logarithmic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.boolean("power_of_two", self.power_of_two)

    def step_of(self, state: State) -> Tensor:
        power = state["log2_clip"].double()  # wide: the same fp32 of it on every device
        if not self.power_of_two:
            return divided(power.exp2(), self.format.high).to(state["log2_clip"].dtype)
        levels = self.format.bits - 1 if self.format.signed else self.format.bits
        return (power.ceil() - levels).exp2().to(state["log2_clip"].dtype)

    def fit(self, x: Tensor, state: State) -> None:
        """Set the clip by x, in place."""
        found = self._largest(self._first(x).abs())
        state["log2_clip"].copy_(torch.where(found == 0, found.max(), found).log2())

    def backward(self, grad: Tensor, x: Tensor, state: State) -> tuple[Tensor, State]:
        """grad, x: one shape -> (the gradient of x, in grad's dtype, {"log2_clip": its own})."""
        given, (grad, x) = grad.dtype, self._real(grad, x)
        ratio = self._ratio(x, self._checked(state, x))
        low, high, code = self.format.low, self.format.high, ratio.round()
        inside = (code >= low) & (code <= high)
        slope = torch.where(inside, code - ratio, code.clamp(low, high))
        found = self._summed(grad * slope) * self.step_of(state) * math.log(2)
        return (grad * inside).to(given), {"log2_clip": found.float()}
