"""RealOffset: an affine quantizer whose levels begin at the end of the range, wherever 0 lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from . import checks, tensor_checks
from .devices.by_device import ByDevice
from .devices.numbers import divided
from .elements import as_real
from .formats import FloatFormat, IntFormat, fp32
from .granularity import expand
from .kernels.gpu import offset as gpu
from .noise import needed, random_bits
from .qtensor import QTensor
from .quantizer import Quantizer
from .ranges.rules import State
from .scales.scale import Scale
from .settings import Settings
from .steps import range_of


@dataclass(frozen=True)
class RealOffset:
    """An affine quantizer with a real offset in the place of its integer zero point.

    of   an affine Quantizer: its range, granularity, rounding and number of levels

        step = (high - low) / (2^bits - 1)
        value = low + step * clamp(round((x - low) / step), 0, 2^bits - 1)

    low and high are the range as its rule gives it, not widened to include 0; both are levels, and
    0 is one by chance alone: what was 0 becomes as much as half a step (a whole one under
    stochastic rounding).  Computed in fp64, the value rounded once, to fp32; a range of one number
    has that value.  A non-finite element makes its granule NaN.

    The public code of Banner et al. 2018 quantizes so, calculate_qparams and UniformQuantize of
    convNet.pytorch (ebec93d) and UniformQuantize of quantized.pytorch (e09c447), whose
    `enforce_true_zero` no caller sets.

    No integers come of it: elements are the values, of format fp32 without a scale, and products
    take place in fp32, as in that code.  ValueError or TypeError for a Quantizer that is not
    affine, has a scale of its own, blocks along a sum or a gradient that is not the identity.
    """

    of: Quantizer
    #: the format of elements
    returns: ClassVar[FloatFormat] = fp32

    def __post_init__(self) -> None:
        need = "an affine Quantizer, as of IntFormat(8, signed=False, symmetric=False)"
        if not isinstance(self.of, Quantizer):
            checks.refuse("of", self.of, need)
        if not self.of.affine:
            raise ValueError(f"of: got {self.of}, need {need}")
        if self.of.scale != Scale():
            raise ValueError(
                f"of: got scale {self.of.scale}, but an offset is real, and its step fp64; leave "
                f"scale out"
            )
        if self.of.granularity.of != "tensor":
            raise ValueError(
                f"of: got {self.of.granularity}, which are cut for a Quantizer alone; give "
                f"a granularity by axes, such as per_channel()"
            )
        if self.of.straight_through != "identity":
            raise ValueError(
                f"of: got straight_through {self.of.straight_through!r}, need 'identity'"
            )

    @property
    def noisy(self) -> bool:
        """Whether calls need a key."""
        return bool(self.of.rounding.random_bits)

    def init_state(self, shape: Sequence[int | None]) -> State:
        """The range's state, see `Quantizer`."""
        return self.of.init_state(shape)

    def __call__(
        self,
        x: Tensor,
        *,
        state: State | None = None,
        key: Tensor | None = None,
        training: bool = True,
    ) -> QTensor:
        """x, state, key, training: as a Quantizer's, and so are the errors."""
        x = tensor_checks.real(x).detach()
        if self.of.rounding.random_bits:
            tensor_checks.key(needed(key, "stochastic rounding"))
        made = values(x, self.of, state, key, training)
        return QTensor(made, None, None, fp32, tuple(max(size, 1) for size in x.shape))

    def __str__(self) -> str:
        return f"{self.of}, real offset"


def _values(
    x: Tensor, of: Settings, state: State | None, key: Tensor | None, training: bool
) -> Tensor:
    """The values of x, fp32, by an affine quantizer; not looked at."""
    x, fmt = as_real(x), of.format
    assert of.range is not None and isinstance(fmt, IntFormat)
    bits = None if key is None or not of.rounding.random_bits else random_bits(key, x.shape)
    block = of.granularity.block_shape(x.shape)
    ends = range_of(x, of.range, block, state or None, training)
    low, high = (expand(end.double(), x.shape, block) for end in ends)
    most = fmt.high - fmt.low
    step = divided(high - low, most)
    divisor = torch.where(step == 0, float("inf"), step)
    levels = of.rounding((x - low) / divisor, bits)
    return (low + step * levels.clamp(0, most)).float()


values = ByDevice(_values, cuda=gpu.values)
