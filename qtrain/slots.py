"""The six operands of a layer's three products, and their quantizers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from quantizers import OFF, Granularity, QuantizerLike
from quantizers.protocol import needs_key, straight_through

from . import checks

#: each product's two operands
OPERANDS: dict[str, tuple[str, str]] = {
    "forward": ("input", "weight"),
    "grad_input": ("grad_output", "weight"),
    "grad_weight": ("grad_output", "input"),
}
#: The six operand slots, (product, operand), in the order that numbers their noise.
SLOTS: tuple[tuple[str, str], ...] = tuple(
    (product, operand) for product, operands in OPERANDS.items() for operand in operands
)


def short(quantizer: QuantizerLike) -> str:
    """A quantizer in a few words: its own, or the name of a class that has none."""
    kind = type(quantizer)
    plain = kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__
    return kind.__name__ if plain else str(quantizer)


def _check(owner: str, **quantizers: object) -> None:
    for name, quantizer in quantizers.items():
        checks.quantizer(f"{owner}.{name}", quantizer)


@dataclass(frozen=True, kw_only=True)
class Forward:
    """output = input (x) weight."""

    input: QuantizerLike = OFF
    weight: QuantizerLike = OFF

    def __post_init__(self) -> None:
        _check("forward", input=self.input, weight=self.weight)


@dataclass(frozen=True, kw_only=True)
class GradInput:
    """grad_input = grad_output (x) weight.

    weight None: the forward's quantized weight; where its blocks lie along the sum and are not
    square, its quantizer along this product's sum.
    """

    grad_output: QuantizerLike = OFF
    weight: QuantizerLike | None = None

    def __post_init__(self) -> None:
        weight = OFF if self.weight is None else self.weight
        _check("grad_input", grad_output=self.grad_output, weight=weight)


@dataclass(frozen=True, kw_only=True)
class GradWeight:
    """grad_weight = grad_output (x) input.

    input  None: the forward's quantized input; where its blocks lie along the sum, its quantizer
           along this product's sum
    unit   "fp32", or "bf16": multiply in bf16 units, which hold both operands exactly, sum in fp32
           and round every result to bf16, as those units return it; faster where a machine has
           them, and another gradient: its last 16 bits are gone.  Not for integer products.
    """

    grad_output: QuantizerLike = OFF
    input: QuantizerLike | None = None
    unit: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        own = OFF if self.input is None else self.input
        _check("grad_weight", grad_output=self.grad_output, input=own)
        checks.choice("grad_weight.unit", self.unit, ("fp32", "bf16"))


class Slot(NamedTuple):
    """What is known of an operand's quantizer before any tensor is seen.

    number             its place in SLOTS, which numbers its noise
    noisy              whether its calls need a noise key
    straight_through   whether its backward is the identity
    reused             whether a backward product takes the operand as the forward quantized it
    cut                whether its blocks lie along the product's sum: `quantizers.blocks`.  One of
                       a backward product that is not reused is quantized in the backward pass
    """

    quantizer: QuantizerLike
    number: int
    noisy: bool
    straight_through: bool
    reused: bool
    cut: bool


def slot_of(
    product: str, operand: str, own: QuantizerLike | None, forward: QuantizerLike | None
) -> Slot:
    """own: what the product names, or None; forward: what the forward does, None for grad_output.

    ValueError for a quantizer that cannot have blocks along the sum.
    """
    quantizer = forward if own is None else own
    assert quantizer is not None
    granularity = getattr(quantizer, "granularity", None)
    cut, same = False, True
    if isinstance(granularity, Granularity) and granularity.of == "product":
        # along another sum a weight's square blocks are the same ones
        cut, same = True, operand == "weight" and granularity.square
    if cut and not straight_through(quantizer):
        raise ValueError(
            f"{product}.{operand}: {short(quantizer)} has a backward of its own, and blocks "
            f"along the sum; use straight_through='identity'"
        )
    return Slot(
        quantizer, SLOTS.index((product, operand)), needs_key(quantizer),
        straight_through(quantizer),
        product != "forward" and same and (own is None or own == forward), cut,
    )  # fmt: skip
