"""Means that are taken off a product's operands, before they are quantized, and given back."""

from __future__ import annotations

from dataclasses import dataclass

from .. import checks
from .transforms import Hadamard


@dataclass(frozen=True)
class Center:
    """x -> x - mean of x over tokens, in operands of a product; the product gets the means' back.

        product(a, b) = product(a - mean(a), b) + product(mean(a), b)

    The first is the quantized product; the second, of rank one in each matrix, is of what no
    quantizer saw.  An operand's offset, which all tokens share, takes no part in its scales and
    errors (Averis: Cao et al., arXiv 2603.10444, inputs and gradients; SageAttention: arXiv
    2410.02367, the keys of attention, where the softmax needs nothing back).

    operands   of the product, by name: Forward's "input", "weight"; a matrix product's second
               operand, as the keys, is its "weight"
    then       a rotation of both operands behind it, or None

    The mean is over all axes but the features or channels; in a weight over output channels, at
    each place of a kernel; in a matrix product over the rows of each matrix.  Tokens are those of
    this process.  In fp64, pairs of halves added, rounded once to fp32, as the difference is; what
    is given back is summed in fp64, rounded once to fp32 and added to the product, behind its
    bias.  A feature that is not finite in one token is not in any.
    """

    operands: tuple[str, ...]
    then: Hadamard | None = None

    def __post_init__(self) -> None:
        given = self.operands
        if isinstance(given, list):
            object.__setattr__(self, "operands", tuple(given))
        names = self.operands
        if not isinstance(names, tuple) or not names or len(set(names)) != len(names):
            raise ValueError(
                f"center: got {checks.shown(given)}, need names of operands, center('input')"
            )
        for name in names:
            checks.choice("center: operand", name, ("input", "weight", "grad_output"))
        if not isinstance(self.then, Hadamard | None):
            checks.refuse("center: then", self.then, "hadamard(...) or None")

    def __str__(self) -> str:
        text = f"mean of {' and '.join(self.operands)} taken off"
        return text if self.then is None else f"{text}, {self.then}"


def center(*operands: str, then: Hadamard | None = None) -> Center:
    """Mean subtraction of a product: Forward(..., transform=center("input"))."""
    return Center(operands, then)
