"""LSQ: a step learned by the slope of the rounded value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from .. import checks
from ..devices.numbers import divided
from ..elements import as_real
from ..formats import IntFormat
from ..granularity import Granularity
from ..ranges.rules import State
from .stepped import Stepped

Per = Literal["tensor", "sample", "none"]
Start = Literal["magnitude", "deviation"]


@dataclass(frozen=True, kw_only=True)
class LSQ(Stepped):
    """Learned step size quantization: see `Stepped` for values, format and granularity.

    scaled_by   the gradient of a step is divided by sqrt(N high), N the elements that share it:
                "tensor", all of them, as of weights; "sample", those of one entry of the first
                axis, as of inputs; "none": not divided
    start       the step that a first tensor gives: "magnitude", 2 mean|x| / sqrt(high), or
                "deviation", the larger of |mean - 3 std| and |mean + 3 std| over -low, as LSQ+ has
                it for weights; that of the whole tensor where a granule's is 0

        d value / d step = round(x / step) - x / step   where low < x / step < high
                           low, high                    below, above
        d value / d x    = 1 there, 0 below and above

    Esser, McKinstry, Bablani, Appuswamy, Modha 2020, "Learned Step Size Quantization", arXiv
    1902.08153, equations 1 to 5 and section 2.2, where integers are -2^(b-1) .. 2^(b-1) - 1 for
    weights and 0 .. 2^b - 1 for inputs behind a ReLU; Bhalgat et al. 2020, arXiv 2004.09576,
    section 3.2.  The step is |step|, which an optimizer may carry through 0.
    """

    if TYPE_CHECKING:  # the format takes a name

        def __init__(
            self,
            *,
            format: IntFormat | str,
            granularity: Granularity = ...,
            scaled_by: Per = ...,
            start: Start = ...,
        ) -> None: ...

    scaled_by: Per = "tensor"
    start: Start = "magnitude"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("scaled_by", self.scaled_by, get_args(Per))
        checks.choice("start", self.start, get_args(Start))
        if self.start == "deviation" and not self.format.signed:
            raise ValueError(
                f"start: got 'deviation' for {self.format}, which has no numbers below 0; leave it "
                f"'magnitude'"
            )

    def step_of(self, state: State) -> Tensor:
        return state["step"].abs()

    def fit(self, x: Tensor, state: State) -> None:
        """Set the step by x, in place."""
        x = as_real(self._first(x))
        count = self._summed(torch.ones_like(x))
        if self.start == "magnitude":
            total = self._summed(x.abs())
            start = 2 * torch.where(total == 0, divided(total.sum(), x.numel()), total / count)
            start = divided(start, math.sqrt(self.format.high))
        else:
            mean = self._summed(x) / count
            square = self._summed(x.double().square()) / count
            std = (square - mean.square()).clamp(min=0).sqrt()
            ends = torch.maximum((mean - 3 * std).abs(), (mean + 3 * std).abs())
            start = divided(torch.where(ends == 0, ends.max(), ends), -self.format.low)
        state["step"].copy_(start)

    def backward(self, grad: Tensor, x: Tensor, state: State) -> tuple[Tensor, State]:
        """grad, x: one shape -> (the gradient of x, in grad's dtype, {"step": its own})."""
        given, (grad, x) = grad.dtype, self._real(grad, x)
        ratio = self._ratio(x, self._checked(state, x))
        low, high = self.format.low, self.format.high
        inside = (ratio > low) & (ratio < high)
        slope = torch.where(inside, ratio.round() - ratio, ratio.clamp(low, high))
        step = self._summed(grad * slope) * torch.where(state["step"] < 0, -1.0, 1.0)
        return (grad * inside).to(given), {"step": (step * self._factor(x)).float()}

    def _factor(self, x: Tensor) -> float:
        if self.scaled_by == "none" or not x.numel():
            return 1.0
        count = math.prod(self.granularity.block_shape(x.shape))
        if self.scaled_by == "sample":
            count //= self.granularity.block_shape(x.shape)[0]
        return 1 / math.sqrt(count * self.format.high)
