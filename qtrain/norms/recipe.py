"""How a norm is simulated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from quantizers import OFF, FloatFormat, Off, QuantizerLike
from quantizers.devices.by_device import spec
from quantizers.names import take_names

from .. import checks
from . import deviations
from .arithmetic import Arithmetic
from .deviations import Deviation

_L2 = deviations.l2()
#: the operands that have quantizers, in the order that numbers their noise
ROLES = ("input", "weight", "bias", "grad_output")
StatisticsGradient = Literal["exact", "l2", "detached"]


@dataclass(frozen=True, kw_only=True)
class NormRecipe:
    """The deviation of a norm, its gradient, its arithmetic, and one quantizer per operand.

    Of a batch-norm's channels, a LayerNorm's or RMSNorm's rows, a GroupNorm's groups.

    deviation             what estimates the standard deviation: deviations.range_() ...
    statistics_gradient   what the deviation passes back:  "exact", its own gradient, for range a
                          spike on two elements a chunk;  "l2", that of a root mean square of the
                          same value, which leaves the input's gradient orthogonal to the centered
                          input;  "detached", nothing.  The mean always passes its own back.
    input, weight, bias   quantizers of x, the scale and the shift (straight-through)
    grad_output           quantizer of the gradient that enters the norm's backward
    activation            the float format in which the output is rounded, or its name, or None: not
                          at all
    arithmetic            what every operation and every partial sum is rounded to, forward and
                          backward, or None: fp32, fp64 for fp64
    """

    deviation: Deviation = _L2
    statistics_gradient: StatisticsGradient = "exact"
    input: QuantizerLike = OFF
    weight: QuantizerLike = OFF
    bias: QuantizerLike = OFF
    grad_output: QuantizerLike = OFF
    activation: FloatFormat | None = None
    arithmetic: Arithmetic | None = None
    _specs: tuple[str | None, str | None] = field(
        default=(None, None), init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not isinstance(self.deviation, Deviation):
            hint = f"deviations.get(name) gives one of {', '.join(deviations.names())}"
            checks.refuse("deviation", self.deviation, "a Deviation", hint)
        checks.choice("statistics_gradient", self.statistics_gradient, ("exact", "l2", "detached"))
        if self.deviation == deviations.none() and self.statistics_gradient == "l2":
            raise ValueError(
                "statistics_gradient: got 'l2' with deviation none, which has no statistic beyond "
                "the mean; leave it 'exact'"
            )
        for name, quantizer in self._quantizers.items():
            checks.quantizer(f"norm.{name}", quantizer)
            checks.without_parameters(f"norm.{name}", quantizer)
        take_names(self, activation="format")
        if not isinstance(self.activation, FloatFormat | None):
            checks.refuse("activation", self.activation, "a FloatFormat or None")
        if not isinstance(self.arithmetic, Arithmetic | None):
            checks.refuse("arithmetic", self.arithmetic, "an Arithmetic or None")
        own = self.deviation, self.statistics_gradient
        specs = spec((*own, None)), spec((*own, self.activation))
        object.__setattr__(self, "_specs", specs)

    def spec(self, rounded: bool) -> str | None:
        """Deviation, its gradient and, when rounded, the output's format, as a string."""
        own, with_output = self._specs
        return with_output if rounded else own

    @property
    def _quantizers(self) -> dict[str, QuantizerLike]:
        return {role: getattr(self, role) for role in ROLES}

    @property
    def is_off(self) -> bool:
        """Whether the norm is exactly torch's, so that it is left alone."""
        return self == _OFF

    def __str__(self) -> str:
        parts = [str(self.deviation)]
        if self.statistics_gradient != "exact":
            parts.append(f"statistics_gradient {self.statistics_gradient}")
        if self.arithmetic is not None:
            parts.append(str(self.arithmetic))
        parts += [f"{name} {q}" for name, q in self._quantizers.items() if not isinstance(q, Off)]
        if self.activation is not None:
            parts.append(f"output {self.activation}")
        return "; ".join(parts)


_OFF = NormRecipe()
