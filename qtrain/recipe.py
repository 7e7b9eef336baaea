"""A recipe: one quantizer for each of the six operands of a layer's three products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch

from quantizers import OFF, FloatFormat, Granularity, IntFormat, Off, QuantizerLike, bf16
from quantizers.formats import NATIVE
from quantizers.protocol import needs_key, straight_through

from . import checks
from .norms.recipe import NormRecipe

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


def _short(quantizer: QuantizerLike) -> str:
    """A quantizer in a few words: its own, or the name of a class that has none."""
    kind = type(quantizer)
    plain = kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__
    return kind.__name__ if plain else str(quantizer)


def _exact_in_bf16(fmt: object) -> bool:
    """Whether bf16 holds every element, less any zero point."""
    if isinstance(fmt, IntFormat):
        return fmt.high - fmt.low <= 256
    return isinstance(fmt, FloatFormat) and fmt.mantissa <= bf16.mantissa


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


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a layer's products, its output and the norms are simulated.

    forward, grad_input, grad_weight   the three products' operand quantizers
    activation   the float format in which outputs are rounded (nearest even), or None: not at all
    narrow       whether outputs are also kept in that format's own dtype (fp16, bf16); the
                 gradients that flow between layers then are of that dtype as well
    norm         how batch-norms are computed, or None: left alone
    with_bits    the same recipe at another width (None: it has none)

    Sums are exact for integer operands and accumulated in fp32 otherwise; the weight update and
    the optimizer's state stay in full precision.
    """

    name: str
    forward: Forward = Forward()
    grad_input: GradInput = GradInput()
    grad_weight: GradWeight = GradWeight()
    activation: FloatFormat | None = None
    narrow: bool = False
    norm: NormRecipe | None = None
    with_bits: Callable[[int], Recipe] | None = field(default=None, compare=False)
    #: each operand's quantizer, and what is known of it
    slots: Mapping[tuple[str, str], Slot] = field(init=False, repr=False, compare=False)
    #: the products of which neither operand is quantized
    off: frozenset[str] = field(init=False, repr=False, compare=False)
    #: whether a layer under this recipe is exactly the torch layer
    products_off: bool = field(init=False, repr=False, compare=False)
    #: the products in which blocks along the sum are cut
    cut: frozenset[str] = field(init=False, repr=False, compare=False)
    #: the dtype of each product's units, None for fp32
    units: Mapping[str, torch.dtype | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        checks.text("name", self.name)
        for name, kind in (
            ("forward", Forward),
            ("grad_input", GradInput),
            ("grad_weight", GradWeight),
        ):
            if not isinstance(getattr(self, name), kind):
                checks.refuse(name, getattr(self, name), f"{kind.__name__}(...)")
        if not isinstance(self.activation, FloatFormat | None):
            checks.refuse("activation", self.activation, "a FloatFormat or None")
        if not isinstance(self.norm, NormRecipe | None):
            checks.refuse("norm", self.norm, "a NormRecipe or None")
        checks.boolean("narrow", self.narrow)
        if self.with_bits is not None:
            need = "a function of the number of bits that returns a Recipe, or None"
            checks.function("with_bits", self.with_bits, need, 8)
        if self.narrow and self.activation not in NATIVE:
            raise ValueError(
                f"narrow: activation is {self.activation}, which has no torch dtype of 16 bits to "
                f"keep outputs in; set activation=quantizers.fp16 or quantizers.bf16"
            )

        slots = {place: self._slot(number, *place) for number, place in enumerate(SLOTS)}
        quantized = {
            product for (product, _), s in slots.items() if not isinstance(s.quantizer, Off)
        }
        object.__setattr__(self, "slots", slots)
        cut = frozenset(product for (product, _), s in slots.items() if s.cut)
        object.__setattr__(self, "cut", cut)
        object.__setattr__(self, "off", frozenset(p for p, _ in SLOTS) - quantized)
        object.__setattr__(self, "products_off", self.activation is None and len(self.off) == 3)
        unit = None
        if self.grad_weight.unit == "bf16":
            self._check_bf16_unit()
            unit = torch.bfloat16
        units = {"forward": None, "grad_input": None, "grad_weight": unit}
        object.__setattr__(self, "units", units)

    def _slot(self, number: int, product: str, operand: str) -> Slot:
        own: QuantizerLike | None = getattr(getattr(self, product), operand)
        forward: QuantizerLike | None = getattr(self.forward, operand, None)
        quantizer = forward if own is None else own
        assert quantizer is not None
        granularity = getattr(quantizer, "granularity", None)
        cut = isinstance(granularity, Granularity) and granularity.of == "product"
        # along another sum a weight's square blocks are the same ones
        same = not cut or (operand == "weight" and granularity.square)
        if cut and not straight_through(quantizer):
            raise ValueError(
                f"{product}.{operand}: {_short(quantizer)} has a backward of its own, and blocks "
                f"along the sum; use straight_through='identity'"
            )
        return Slot(
            quantizer, number, needs_key(quantizer), straight_through(quantizer),
            product != "forward" and same and (own is None or own == forward), cut,
        )  # fmt: skip

    def _check_bf16_unit(self) -> None:
        slots = {name: self.slot("grad_weight", name) for name in ("grad_output", "input")}
        formats = {name: getattr(quantizer, "format", None) for name, quantizer in slots.items()}
        for name, fmt in formats.items():
            if not _exact_in_bf16(fmt):
                raise ValueError(
                    f"grad_weight.unit: 'bf16' holds 8 significant bits, but {name} is "
                    f"{_short(slots[name])}; quantize it to integers of at most 8 bits or to a "
                    f"float format of at most 7 mantissa bits, or use unit='fp32'"
                )
        if all(isinstance(fmt, IntFormat) for fmt in formats.values()):
            raise ValueError(
                "grad_weight.unit: got 'bf16', but both operands are integer, and their sums are "
                "exact: use unit='fp32'"
            )

    def stored(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of outputs where the caller's is `dtype`."""
        return NATIVE[self.activation] if self.narrow else dtype

    def slot(self, product: str, operand: str) -> QuantizerLike:
        """The quantizer in force for an operand: the forward's where a product names none."""
        return self.slots[product, operand].quantizer

    def reuses(self, product: str, operand: str) -> bool:
        """Whether a backward product takes the operand as the forward quantized it."""
        return self.slots[product, operand].reused

    def at(self, bits: int) -> Recipe:
        """This recipe at `bits` bits, its outputs' format kept; ValueError where it takes none."""
        checks.integer("bits", bits, low=2, high=16)
        if self.with_bits is None:
            raise ValueError(
                f"bits: got {bits!r}, but recipe {self.name!r} has no bits to set; leave bits out"
            )
        made = self.with_bits(bits)
        if not isinstance(made, Recipe):
            checks.refuse(f"with_bits({bits})", made, "a Recipe")
        return replace(made, activation=self.activation, narrow=self.narrow)

    def __str__(self) -> str:
        if self.products_off:
            return f"{self.name}: off"
        grad_input = self.slot("grad_input", "grad_output")
        grad_weight = self.slot("grad_weight", "grad_output")
        text = (
            f"{self.name}: input {_short(self.forward.input)}; "
            f"weight {_short(self.forward.weight)}; "
            f"grad_output for grad_input {_short(grad_input)}; "
            f"for grad_weight {_short(grad_weight)}"
        )
        if self.grad_weight.unit != "fp32":
            text += f" in {self.grad_weight.unit} units"
        for product, operand in (("grad_input", "weight"), ("grad_weight", "input")):
            if not self.reuses(product, operand):
                text += f"; {operand} for {product} {_short(self.slot(product, operand))}"
        if self.activation is not None:
            text += f"; output {self.activation}{' kept in 16 bits' if self.narrow else ''}"
        return text
