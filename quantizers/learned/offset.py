"""LSQPlus: a learned step and a learned offset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import tensor_checks
from ..devices.numbers import divided
from ..formats import FloatFormat, fp32
from ..granularity import expand
from ..qtensor import QTensor
from ..ranges.rules import State
from .lsq import LSQ

#: shares of the range that a first tensor tries
_SHARES = tuple(share / 20 for share in range(1, 21))


@dataclass(frozen=True, kw_only=True)
class LSQPlus(LSQ):
    """LSQ with a learned offset: value = step * clamp(round((x - offset) / step), low, high) +
    offset; see `LSQ` for the settings, `Stepped` for format and granularity.

        d value / d offset = 0 where low < (x - offset) / step < high, else 1
        the others as LSQ's, of x - offset

    Bhalgat, Lee, Nagel, Blankevoort, Kwak 2020, "LSQ+: Improving low-bit quantization through
    learnable offsets and better initialization", arXiv 2004.09576, equations 1 to 6, for inputs
    that are not all positive; its weights have no offset: LSQ(start="deviation").  A first tensor
    gives low and high to the ends of its range, of all shares of that, 1/20 to 1, the one that
    errs least in squares, where the paper descends on that error.  The offset's gradient is divided
    as the step's.

    An offset is real: no integers come of it; elements are the values, of format fp32 without a
    scale, computed in fp64 and rounded once, and products take place in fp32, as `RealOffset`'s.
    """

    learned: ClassVar[tuple[str, ...]] = ("step", "offset")
    #: the format of elements
    returns: ClassVar[FloatFormat] = fp32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start != "magnitude":
            raise ValueError(
                f"start: got {self.start!r}, but a step with an offset begins at the ends of a "
                f"first tensor; leave it out"
            )

    def init_parameters(self, shape: Sequence[int | None]) -> State:
        """Steps of 1 and offsets of 0, see `Stepped`."""
        made = super().init_parameters(shape)
        return {**made, "offset": torch.zeros_like(made["offset"])}

    def __call__(
        self,
        x: Tensor,
        *,
        state: State | None = None,
        key: Tensor | None = None,
        training: bool = True,
    ) -> QTensor:
        """x, state, key, training: as `Stepped`."""
        x = tensor_checks.real(x).detach()
        state = self._checked(state, x)
        wide, offset, step = self._wide(x, state)
        codes = self._ratio(wide - offset, state).round().clamp(self.format.low, self.format.high)
        made = torch.where(torch.isfinite(x), (codes * step + offset).float(), float("nan"))
        return QTensor(made, None, None, fp32, tuple(max(size, 1) for size in x.shape))

    def _lost(self, x: Tensor) -> float:
        """None: an offset takes what is negative."""
        return 0.0

    def _wide(self, x: Tensor, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """x, the offset and the step of each element, fp64."""
        block = self.granularity.block_shape(x.shape)
        offset, step = (
            expand(self._spread(each, x).double(), x.shape, block)
            for each in (state["offset"], self.step_of(state))
        )
        return x.double(), offset, step

    def fit(self, x: Tensor, state: State) -> None:
        """Set the step and the offset by x, in place."""
        wide = self._first(x).double()
        high, low = self._largest(wide), -self._largest(-wide)
        levels = self.format.high - self.format.low
        step = divided(high - low, levels)
        if not step.any():  # constant in each granule: a step of 0 has no gradient
            step = torch.full_like(step, float(wide.abs().max()) / levels)
        step = torch.where(step == 0, step.max(), step)
        found, least = dict(state), torch.full_like(step, float("inf"))
        for share in _SHARES:
            tried = {"step": step * share, "offset": (low - step * self.format.low) * share}
            values = self(wide, state={name: each.float() for name, each in tried.items()})
            error = self._summed((values.elements.double() - wide).square())
            better, least = error < least, torch.minimum(error, least)
            found = {name: torch.where(better, tried[name], found[name]) for name in tried}
        for name, each in found.items():
            state[name].copy_(each)

    def backward(self, grad: Tensor, x: Tensor, state: State) -> tuple[Tensor, State]:
        """grad, x: one shape -> (the gradient of x, in grad's dtype, those of step and offset)."""
        given, (grad, x) = grad.dtype, self._real(grad, x)
        wide, offset, _ = self._wide(x, self._checked(state, x))
        passed, found = super().backward(grad.double(), wide - offset, state)
        outside = grad.double() - passed
        found["offset"] = (self._summed(outside) * self._factor(x)).float()
        return passed.to(given), found
