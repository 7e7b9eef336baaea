"""The six operands of a layer's three products, and their quantizers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from quantizers import OFF, Granularity, QuantizerLike, per_tensor
from quantizers.accumulators import Accumulator
from quantizers.protocol import learns, needs_key, straight_through

from .. import checks
from .center import Center
from .learned import check_learned
from .transforms import Hadamard

Transform = Hadamard | Center
Source = Literal["input", "forward"]

#: each product's two operands
OPERANDS: dict[str, tuple[str, str]] = {
    "forward": ("input", "weight"),
    "grad_input": ("grad_output", "weight"),
    "grad_weight": ("grad_output", "input"),
}
#: the quantizer of what a layer hands on, where its recipe has one
OUTPUT = ("forward", "output")
#: The six operand slots, (product, operand), in the order that numbers their noise.
SLOTS: tuple[tuple[str, str], ...] = tuple(
    (product, operand) for product, operands in OPERANDS.items() for operand in operands
)


def short(quantizer: QuantizerLike) -> str:
    """A quantizer in a few words: its own, or the name of a class that has none."""
    kind = type(quantizer)
    plain = kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__
    return kind.__name__ if plain else str(quantizer)


def _check(owner: str, transform: object, accumulator: object, **quantizers: object) -> None:
    if not isinstance(accumulator, Accumulator | None):
        need = "one of quantizers.accumulators', accumulators.sequential(fp16) (no text), or None"
        checks.refuse(f"{owner}.accumulator", accumulator, need)
    for name, quantizer in quantizers.items():
        checks.quantizer(f"{owner}.{name}", quantizer)
    if not isinstance(transform, Transform | None):
        checks.refuse(f"{owner}.transform", transform, "hadamard(...), center(...) or None")
    unknown = set(transform.operands) - set(quantizers) if isinstance(transform, Center) else ()
    if unknown:
        raise ValueError(
            f"{owner}.transform: center got {sorted(unknown)}, but its operands are "
            f"{' and '.join(quantizers)}"
        )


def _check_source(owner: str, operand: str, source: object, own: QuantizerLike | None) -> None:
    checks.choice(f"{owner}.source", source, get_args(Source))
    if source == "forward" and own is None:
        raise ValueError(
            f"{owner}.source: got 'forward', but no quantizer of its own takes the forward's "
            f"value; name the one of {owner}.{operand}, that of forward.{operand} again if it is "
            f"to be the same, or leave source out"
        )


@dataclass(frozen=True, kw_only=True)
class Forward:
    """output = input (x) weight.

    transform     of the operands, before they are quantized, or None; see `Hadamard`, `Center`
    accumulator   what sums the products of their elements, term by term: `accumulated.product`;
                  None: integers are summed exactly, others in fp32
    """

    input: QuantizerLike = OFF
    weight: QuantizerLike = OFF
    transform: Transform | None = None
    accumulator: Accumulator | None = None

    def __post_init__(self) -> None:
        own = {"input": self.input, "weight": self.weight}
        _check("forward", self.transform, self.accumulator, **own)


@dataclass(frozen=True, kw_only=True)
class GradInput:
    """grad_input = grad_output (x) weight.

    weight      None: the forward's quantized weight; its quantizer along this product's sum where
                blocks lie along the forward's and are not square, or where one of the two products
                has a transform
    source      what `weight` quantizes: "input", the weight itself, or "forward", the value that
                the forward's quantizer gave it, which needs a quantizer named in `weight`
    transform, accumulator   as the forward's
    """

    grad_output: QuantizerLike = OFF
    weight: QuantizerLike | None = None
    source: Source = "input"
    transform: Transform | None = None
    accumulator: Accumulator | None = None

    def __post_init__(self) -> None:
        own = {
            "grad_output": self.grad_output,
            "weight": OFF if self.weight is None else self.weight,
        }
        _check("grad_input", self.transform, self.accumulator, **own)
        _check_source("grad_input", "weight", self.source, self.weight)


@dataclass(frozen=True, kw_only=True)
class GradWeight:
    """grad_weight = grad_output (x) input.

    input  None: the forward's quantized input; its quantizer along this product's sum where blocks
           lie along the forward's, or where one of the two products has a transform
    source, transform, accumulator   as grad_input's
    unit   "fp32", or "bf16": multiply in bf16 units, which hold both operands exactly, sum in fp32
           and round every result to bf16, as those units return it; faster where a machine has
           them, and another gradient: its last 16 bits are gone.  Not for integer products.
    """

    grad_output: QuantizerLike = OFF
    input: QuantizerLike | None = None
    unit: Literal["fp32", "bf16"] = "fp32"
    source: Source = "input"
    transform: Transform | None = None
    accumulator: Accumulator | None = None

    def __post_init__(self) -> None:
        own = {
            "grad_output": self.grad_output,
            "input": OFF if self.input is None else self.input,
        }
        _check("grad_weight", self.transform, self.accumulator, **own)
        _check_source("grad_weight", "input", self.source, self.input)
        checks.choice("grad_weight.unit", self.unit, ("fp32", "bf16"))


class Slot(NamedTuple):
    """What is known of an operand's quantizer before any tensor is seen.

    number             its place in SLOTS, which numbers its noise; -1: of an output
    noisy              whether its calls need a noise key
    straight_through   whether its backward is the identity
    reused             whether a backward product takes the operand as the forward quantized it
    cut                whether it is quantized as a matrix of its product (of an output: its rows
                       of features): for blocks along the sum, `quantizers.blocks`, or a transform.
                       One of a backward product that is not reused is quantized in the backward
                       pass
    transform          the product's rotation, or None
    centered           whether the mean over tokens is taken off it
    of_forward         whether it quantizes the forward's value of the operand, not the operand
    late               whether an operand of the forward is quantized in the backward pass, for that
                       product alone: cut or of a product with a transform, and not reused
    learns             whether it has parameters, which the layer owns
    """

    quantizer: QuantizerLike
    number: int
    noisy: bool
    straight_through: bool
    reused: bool
    cut: bool
    transform: Hadamard | None
    centered: bool
    of_forward: bool
    late: bool
    learns: bool


def slot_of(product: str, operand: str, of: object, forward: Forward) -> Slot:
    """of: what is said of the product, a Forward, GradInput or GradWeight.

    ValueError for a quantizer that cannot have blocks along the sum, or a transform.
    """
    own: QuantizerLike | None = getattr(of, operand)
    given: QuantizerLike | None = getattr(forward, operand, None)
    quantizer = given if own is None else own
    assert quantizer is not None
    asked: Transform | None = getattr(of, "transform", None)
    transform = asked.then if isinstance(asked, Center) else asked
    granularity = getattr(quantizer, "granularity", per_tensor)
    along = isinstance(granularity, Granularity) and granularity.of == "product"
    if isinstance(granularity, Granularity) and granularity.of == "flat":
        raise ValueError(
            f"{product}.{operand}: got {granularity} in C order, which lie across the sums of a "
            f"product; use blocks(...) along these, blocks(None) for a scale a row, or per_tensor"
        )
    cut, place = along or transform is not None, f"{product}.{operand}"
    if transform is not None and not along and granularity != per_tensor:
        raise ValueError(
            f"{place}: {short(quantizer)} names axes of the operand, which {transform} mixes; use "
            f"per_tensor, or blocks(...) along the sum"
        )
    # along another sum a weight's square blocks are the same ones
    same = not cut or (operand == "weight" and along and granularity.square)
    same = same and asked is None and forward.transform is None
    source: Source = "input" if operand == "grad_output" else getattr(of, "source", "input")
    if source == "forward" and forward.transform is not None:
        raise ValueError(
            f"{product}.source: got 'forward', but the forward's value is that of {transform}; "
            f"use source='input'"
        )
    reused = product != "forward" and same and source == "input" and own in (None, given)
    late = product != "forward" and operand != "grad_output" and not reused
    divided = asked or (granularity if along else None)
    check_learned(place, short(quantizer), quantizer, divided, late, operand)
    if (cut or asked is not None) and not straight_through(quantizer):
        raise ValueError(
            f"{place}: {short(quantizer)} has a backward of its own, and "
            f"{'blocks along the sum' if along else 'a transform'}; use straight_through='identity'"
        )
    return Slot(
        quantizer, SLOTS.index((product, operand)), needs_key(quantizer),
        straight_through(quantizer), reused, cut, transform,
        isinstance(asked, Center) and operand in asked.operands, source == "forward",
        late and (cut or asked is not None), not reused and learns(quantizer),
    )  # fmt: skip


def of_output(quantizer: QuantizerLike) -> dict[tuple[str, str], Slot]:
    """The slot of outputs, whose noise `handed_on` numbers."""
    granularity = getattr(quantizer, "granularity", per_tensor)
    rows = isinstance(granularity, Granularity) and granularity.of == "product"
    return {
        OUTPUT: Slot(
            quantizer, -1, needs_key(quantizer), straight_through(quantizer), reused=False,
            cut=rows, transform=None, centered=False, of_forward=False, late=False, learns=False,
        )
    }  # fmt: skip


def check_nested(product: str, *slots: Slot) -> None:
    """ValueError for blocks along a product's sum of which none is a multiple of the other."""
    sizes = [
        dict(granularity.sizes).get(-1, 1)
        for granularity in (getattr(slot.quantizer, "granularity", per_tensor) for slot in slots)
        if isinstance(granularity, Granularity) and granularity.of == "product"
    ]
    known = sorted(size for size in sizes if size is not None)
    if len(known) == 2 and known[1] % known[0]:
        raise ValueError(
            f"{product}: blocks of {known[0]} and {known[1]} along its sum do not nest; make one a "
            f"multiple of the other"
        )
