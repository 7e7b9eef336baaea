"""A recipe: one quantizer for each of the six operands of a layer's three products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from quantizers import FloatFormat, IntFormat, Off, QuantizerLike, TableFormat
from quantizers.accumulators import Accumulator
from quantizers.formats import NATIVE
from quantizers.names import take_names

from .. import checks
from ..norms.recipe import NormRecipe
from . import text
from .lookup import Lookup, checked
from .slots import (
    OPERANDS,
    SLOTS,
    Forward,
    GradInput,
    GradWeight,
    Slot,
    check_nested,
    of_output,
    short,
    slot_of,
)
from .units import Unit, text_of, too_narrow, unit_of


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a layer's products, its output and the norms are simulated.

    forward, grad_input, grad_weight   the three products' operand quantizers
    activation   what outputs are rounded to: a float format or its name (nearest even, no scale);
                 any quantizer, whose values are handed on (its gradient that of an operand's);
                 None: not at all.  Its granularity takes axes of the output, or, as blocks(32),
                 neighbouring features (channels) of the rows that a next layer would see
    accumulator  what sums all three products, in place of what each says; then theirs, and None
                 here
    narrow       whether outputs are also kept in that format's own dtype (fp16, bf16); the
                 gradients that flow between layers then are of that dtype as well
    norm         how batch-norms are computed, or None: left alone
    query_chunk  how many queries attention takes at a time (Rabe and Staats 2021,
                 arXiv:2112.05682), forward, and again in its backward pass: each chunk with ranges
                 and noise of its own, and batch x heads x query_chunk x keys scores in memory.
                 None: all its queries.  Where overrides give its two products others: the fewer
    lookup       how tables are looked up in (nn.Embedding, nn.EmbeddingBag), or None: left alone
    with_bits    the same recipe at another width (None: it has none)
    source       who described it, and where: a paper, a file of public code
    leaves_out   what it leaves out of that, or approximates; a model's summary says so
    when         when to take it

    Where no accumulator is named, sums are exact for integer operands and accumulated in fp32
    otherwise; the weight update and the optimizer's state stay in full precision.
    """

    name: str
    forward: Forward = field(default_factory=Forward)
    grad_input: GradInput = field(default_factory=GradInput)
    grad_weight: GradWeight = field(default_factory=GradWeight)
    accumulator: Accumulator | None = None
    activation: FloatFormat | QuantizerLike | None = None
    narrow: bool = False
    norm: NormRecipe | None = None
    query_chunk: int | None = None
    lookup: Lookup | None = None
    with_bits: Callable[[int], Recipe] | None = field(default=None, compare=False)
    source: str = ""
    leaves_out: str = ""
    when: str = ""
    #: each operand's quantizer, and what is known of it
    slots: Mapping[tuple[str, str], Slot] = field(init=False, repr=False, compare=False)
    #: the products of which neither operand is quantized, nor an accumulator named
    off: frozenset[str] = field(init=False, repr=False, compare=False)
    #: whether a layer under this recipe is exactly the torch layer
    products_off: bool = field(init=False, repr=False, compare=False)
    #: whether a transform or an accumulator needs a key at every step
    noisy: bool = field(init=False, repr=False, compare=False)
    #: the products that are computed as matrices: with blocks along the sum, or a transform
    cut: frozenset[str] = field(init=False, repr=False, compare=False)
    #: of each product, the operands whose means are taken off
    centered: Mapping[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)
    #: the operands whose quantizers learn
    learned: tuple[tuple[str, str], ...] = field(init=False, repr=False, compare=False)
    #: what sums each product
    units: Mapping[str, Unit] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        checks.text("name", self.name)
        for name, kind in (
            ("forward", Forward),
            ("grad_input", GradInput),
            ("grad_weight", GradWeight),
        ):
            if not isinstance(getattr(self, name), kind):
                checks.refuse(name, getattr(self, name), f"{kind.__name__}(...)")
        if self.accumulator is not None:
            for product in OPERANDS:
                own = replace(getattr(self, product), accumulator=self.accumulator)
                object.__setattr__(self, product, own)
            object.__setattr__(self, "accumulator", None)
        take_names(self, activation="format")
        self._check_activation()
        if not isinstance(self.norm, NormRecipe | None):
            checks.refuse("norm", self.norm, "a NormRecipe or None")
        object.__setattr__(self, "lookup", checked(self.lookup))
        checks.boolean("narrow", self.narrow)
        if self.query_chunk is not None:
            checks.integer("query_chunk", self.query_chunk, low=1)
        for name in ("source", "leaves_out", "when"):
            if not isinstance(getattr(self, name), str):
                checks.refuse(name, getattr(self, name), "a text")
        if self.with_bits is not None:
            need = "a function of the number of bits that returns a Recipe, or None"
            checks.function("with_bits", self.with_bits, need, 8)

        slots = {
            (product, operand): slot_of(product, operand, getattr(self, product), self.forward)
            for product, operand in SLOTS
        }  # fmt: skip
        quantized = {
            product
            for (product, _), s in slots.items()
            if s.cut or not isinstance(s.quantizer, Off)
        }
        own = {} if self.quantizes_output is None else of_output(self.quantizes_output)
        object.__setattr__(self, "slots", {**slots, **own})
        for product, operands in OPERANDS.items():
            check_nested(product, *[slots[product, operand] for operand in operands])
        units = {product: unit_of(product, getattr(self, product), slots) for product in OPERANDS}
        object.__setattr__(self, "units", units)
        quantized |= {product for product, unit in units.items() if unit is not None}
        drawing = [*(s.transform for s in slots.values()), *units.values()]
        noisy = any(getattr(each, "noisy", False) for each in drawing)
        object.__setattr__(self, "noisy", noisy)
        centered = {
            product: tuple(operand for operand in operands if slots[product, operand].centered)
            for product, operands in OPERANDS.items()
        }
        object.__setattr__(self, "centered", centered)
        object.__setattr__(self, "learned", tuple(s for s in SLOTS if slots[s].learns))
        cut = frozenset(product for (product, _), s in slots.items() if s.cut)
        object.__setattr__(self, "cut", cut)
        object.__setattr__(self, "off", frozenset(p for p, _ in SLOTS) - quantized)
        object.__setattr__(self, "products_off", self.activation is None and len(self.off) == 3)

    def _check_activation(self) -> None:
        if isinstance(self.activation, Off):
            object.__setattr__(self, "activation", None)
        given = self.activation
        if isinstance(given, IntFormat | TableFormat):  # of which 1 is no natural scale
            need = f"a quantizer, which scales them: activation=Quantizer(format={str(given)!r})"
            checks.refuse("activation", given, need, "a FloatFormat alone needs none")
        if not isinstance(given, FloatFormat | None):
            checks.quantizer("activation", given)
            checks.without_parameters("activation", given)
        if self.narrow and (not isinstance(given, FloatFormat) or given not in NATIVE):
            text = None if given is None else short(given)  # type: ignore[arg-type]
            raise ValueError(
                f"narrow: activation is {text}, which has no torch dtype of 16 bits to "
                f"keep outputs in; set activation=quantizers.fp16 or quantizers.bf16"
            )

    @property
    def quantizes_output(self) -> QuantizerLike | None:
        """The quantizer of outputs, where `activation` is one, not a format."""
        return None if isinstance(self.activation, FloatFormat) else self.activation

    def stored(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of outputs where the caller's is `dtype`."""
        return NATIVE[self.activation] if self.narrow else dtype  # type: ignore[index]

    def slot(self, product: str, operand: str) -> QuantizerLike:
        """The quantizer in force for an operand: the forward's where a product names none."""
        return self.slots[product, operand].quantizer

    def reuses(self, product: str, operand: str) -> bool:
        """Whether a backward product takes the operand as the forward quantized it."""
        return self.slots[product, operand].reused

    def at(self, bits: int) -> Recipe:
        """This recipe at `bits` bits; ValueError where it takes none.  Its outputs' format and its
        query chunk are kept, its accumulators, norm and lookup (at `bits`) where one of those bits
        names none."""
        checks.integer("bits", bits, low=2, high=16)
        if self.with_bits is None:
            raise ValueError(
                f"bits: got {bits!r}, but recipe {self.name!r} has no bits to set; leave bits out"
            )
        made = self.with_bits(bits)
        if not isinstance(made, Recipe):
            checks.refuse(f"with_bits({bits})", made, "a Recipe")
        sums = {
            product: replace(own, accumulator=getattr(self, product).accumulator)
            for product in OPERANDS
            if (own := getattr(made, product)).accumulator is None
        }
        norm = self.norm if made.norm is None else made.norm
        own = {"activation": self.activation, "narrow": self.narrow, "norm": norm}
        lookup = made.lookup or (self.lookup and self.lookup.at(bits))
        return replace(made, **own, lookup=lookup, query_chunk=self.query_chunk, **sums)

    @property
    def summed_in(self) -> dict[str, str]:
        """What sums the products, where it is not the usual, in words."""
        found = {product: text_of(unit) for product, unit in self.units.items()}
        return {product: text for product, text in found.items() if text is not None}

    @property
    def lacks(self) -> str:
        """What is left out, but for accumulators where every product has one."""
        if any(unit is None for unit in self.units.values()):
            return self.leaves_out
        return "; ".join(part for part in self.leaves_out.split("; ") if "accumul" not in part)

    @property
    def sums_overflow(self) -> dict[str, str]:
        """Products that an accumulator cannot hold one of, in words; see `too_narrow`."""
        return too_narrow(self.units, self.slots)

    @property
    def stored_as(self) -> str:
        """What outputs are rounded to, in words."""
        if self.activation is None:
            return "not rounded"
        return f"{short(self.activation)}{' kept in 16 bits' if self.narrow else ''}"  # type: ignore[arg-type]

    def __str__(self) -> str:
        return text.text_of(self)
