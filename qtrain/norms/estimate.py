"""What a deviation is: an estimate of each channel's scale, and what its gradient needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from quantizers.ranges.rules import State

from ..checks import choice, number
from .constants import Constant
from .samples import Sample


class Estimate(NamedTuple):
    """sigma (C,), and, where it is a weighted sum of few elements, their indices and weights."""

    sigma: Tensor
    where: Tensor | None = None  # (C, J) int64, into the channel's M elements
    slope: Tensor | None = None  # (C, J), d sigma / d element


class Measure(NamedTuple):
    """What kernels find sigma from in one pass, and times what.

    kind     "squares": the root of the mean square;  "magnitudes": the mean magnitude;
             "extremes": the sum over the chunks of high - low;  "ones": 1
    chunks   consecutive ones, the first `longer` of size + 1 elements, the others of `size`
    """

    kind: Literal["squares", "magnitudes", "extremes", "ones"]
    factor: float = 1.0
    chunks: int = 1
    size: int = 0
    longer: int = 0
    longer_factor: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Deviation(ABC):
    """An estimate of the standard deviation, proportional to its argument's scale."""

    name: ClassVar[str]
    constants: ClassVar[tuple[Constant, ...]] = ("exact",)
    constant: Constant = "exact"
    times: float = 1.0

    def __post_init__(self) -> None:
        choice(f"{self.name}.constant", self.constant, self.constants)
        number(f"{self.name}.times", self.times, low=0, positive=True)

    #: what d divisor / d element is a multiple of, element by element, the mean held fixed: the
    #: element less the mean, or its sign; None where few elements count (Estimate.where)
    dense: ClassVar[Literal["centered", "sign"] | None] = None
    #: whether Estimate.where holds each channel's largest and smallest elements
    names_extremes: ClassVar[bool] = False

    def estimate(self, rows: Tensor) -> Estimate:
        """rows: (C, M), each row's mean already subtracted, fp32 or fp64, M >= 2."""
        return self.of(Sample(rows))

    @abstractmethod
    def of(self, sample: Sample) -> Estimate:
        """The estimate from what it asks of the channels' elements about their means."""

    def measured(self, count: int) -> Measure | None:
        """The same of channels of `count` elements, for kernels; None: `of` alone knows."""
        return None

    def carriers(self, count: int) -> int:
        """How many of a channel's elements Estimate.where names; 0: it is None."""
        return 0

    def init_state(self, shape: Sequence[int | None]) -> State:
        """What a deviation with a memory keeps for the channels of a norm; {} without one."""
        return {}

    def after(self, state: State) -> Deviation:
        """The deviation of the next batch.  state: as `init_state` makes it; a batch in training
        leaves its sigma in it."""
        return self

    def stabilized(self, sigma: Tensor, eps: float) -> Tensor:
        """What the norm divides by: sigma + eps."""
        return sigma + eps

    def dense_factor(self, divisor: Tensor, count: int) -> Tensor:
        """The factor of `dense`.  divisor: stabilized sigma (C,), of `count` elements -> (C,)."""
        raise AssertionError(f"{self.name} has no dense derivative")

    def __str__(self) -> str:
        return self._named(self.constant)

    def _named(self, *settings: str) -> str:
        """The name, the settings behind it, and `times` where it says something."""
        shown = settings if self.times == 1 else (*settings, f"times={self.times:g}")
        return f"{self.name}({', '.join(shown)})" if shown else self.name
