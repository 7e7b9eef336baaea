"""What a lookup of rows follows: the quantizers of its table and of the gradient added into it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from quantizers import OFF, IntFormat, Off, Quantizer, QuantizerLike

from .. import checks
from .slots import short


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """output = rows of weight (nn.Embedding), or sums, means or maxima of them (nn.EmbeddingBag).

    weight        the table's quantizer, which sees (1, rows, features) as that of a linear layer
                  does: per_channel() is a scale a row, blocks(32) lie along a row; its gradient
                  passes as the quantizer's own backward says
    grad_output   of the gradient, (*, features), before it is added into the rows of grad_weight,
                  and multiplied into that of per_sample_weights; blocks lie along features

    A quantizer that learns is a ValueError: its parameters belong to operands of products.
    """

    weight: QuantizerLike = OFF
    grad_output: QuantizerLike = OFF

    def __post_init__(self) -> None:
        for name, quantizer in vars(self).items():
            checks.quantizer(f"lookup.{name}", quantizer)
            checks.without_parameters(f"lookup.{name}", quantizer)

    def at(self, bits: int) -> Lookup:
        """The same at another width, of the formats that are of integers."""
        return Lookup(**{name: _at(quantizer, bits) for name, quantizer in vars(self).items()})

    def __str__(self) -> str:
        own = [f"{name} {short(q)}" for name, q in vars(self).items() if not isinstance(q, Off)]
        return "; ".join(own) or "off"


def _at(quantizer: QuantizerLike, bits: int) -> QuantizerLike:
    if type(quantizer) is not Quantizer or not isinstance(quantizer.format, IntFormat):
        return quantizer
    return replace(quantizer, format=replace(quantizer.format, bits=bits))


def checked(given: object) -> Lookup | None:
    """A recipe's lookup; None where it quantizes nothing.  TypeError for anything else."""
    if not isinstance(given, Lookup | None):
        checks.refuse("lookup", given, "Lookup(...) or None")
    return None if given == Lookup() else given
