"""The narrowest accumulator that each product of a model bears, on one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from quantizers import FloatFormat, IntFormat, fp32
from quantizers.accumulators import Accumulator, exact, integer, sequential
from quantizers.protocol import format_of

from .. import checks
from ..conversion.watch import arguments, twin
from ..files.terminal import printable
from ..inspection.step import Loss, chosen_loss, rehearse
from ..products.module import QProduct, products_of
from ..products.operations import KINDS, Kind
from ..products.probe import Probe
from ..recipe import OPERANDS, Recipe
from ..recipe.units import Unit
from ..reports.numbers import short
from ..reports.table import Table

#: the bits that are tried: of an integer, and of a mantissa
_WHOLE, _MANTISSA = (2, 32), (1, 23)


@dataclass(frozen=True)
class RequiredRow:
    """What one product of a layer bears.

    layer, product   of which it is, by its name ("": the model itself); products of one kind within
                     an attention bear what all of them do
    accumulator      the narrowest; None where the widest that was tried errs more
    bits             of it; of the widest, there
    error            that it makes: root mean square, relative to the exact sums'
    """

    layer: str
    product: Kind
    accumulator: Accumulator | None
    bits: int
    error: float


@dataclass(frozen=True)
class RequiredBits:
    """`print(found)`; `quantize(net, recipe, overrides=found.overrides)`.

    rows        in network order;  overrides: layer -> its recipe with these accumulators
    """

    rows: tuple[RequiredRow, ...]
    overrides: Mapping[str, Recipe]

    def __str__(self) -> str:
        lines = [
            [printable(row.layer or "(model)"), row.product, str(row.accumulator or "-"),
             str(row.bits), short(row.error)]
            for row in self.rows
        ]  # fmt: skip
        headers = ["layer", "product", "accumulator", "bits", "error"]
        return Table(headers=headers, lines=lines).text()


def required_bits(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    loss: Loss | None = None,
    *,
    error: float = 0.01,
) -> RequiredBits:
    """The narrowest accumulator of each product whose sums err by at most `error`.

    Of integer elements a saturating integer of 2 to 32 bits; of others `sequential` in a float of
    8 exponent and 1 to 23 mantissa bits, so that the mantissa alone is at stake.  Errors are those
    of one step's products against the exact sums of the same elements, root mean squares relative
    to theirs, each product by itself: the step is one of wide sums, whatever the model's own
    accumulators lose.  The width is found by halves: errors are taken to fall with the bits.  A
    product whose sums are all 0, as of an empty batch, has no row.

    inputs, targets, loss   as in `inspect`;  error: above 0

    Runs on a copy.  Raises ValueError for a model without a quantized product, and where no loss
    can be formed.
    """
    args, kwargs = arguments(inputs)
    model = twin(model, *args, **kwargs)
    if all(product.recipe.products_off for product in products_of(model)):
        raise ValueError("required_bits: the model has no quantized layer; quantize(model) first")
    checks.number("error", error, low=0, positive=True)
    loss = chosen_loss("required_bits", loss, targets)
    layers = {
        name: [child for child in module.children() if isinstance(child, QProduct)]
        for name, module in model.named_modules()
    }
    searches: dict[str, _Search] = {}
    for name, products in layers.items():
        for product in products:
            own = searches.setdefault(name, _Search(product.recipe, error))
            product.probe, product.recipe = own, own.wide()
    rehearse("required_bits", model, inputs, targets, loss)
    found = {name: search for name, search in searches.items() if search.bits}
    rows = [
        RequiredRow(
            name, kind, search.accumulator(kind), search.width(kind), search.errors[kind]
        )
        for name, search in found.items() for kind in KINDS if kind in search.bits
    ]  # fmt: skip
    inner_first = sorted(found, key=lambda name: -name.count("."))  # as the first match decides
    return RequiredBits(tuple(rows), {name: found[name].override() for name in inner_first})


@dataclass
class _Search(Probe):
    """The probe of a layer, of one product or more.

    bits, errors   of each kind of product, the most that a call needed, and its error
    """

    recipe: Recipe
    error: float
    bits: dict[Kind, int] = field(default_factory=dict)
    errors: dict[Kind, float] = field(default_factory=dict)

    def summed(self, kind: Kind, unit: Unit, found: Tensor, by: Callable[..., Tensor]) -> None:
        true = by(torch.float64, bias=None).double()
        if not true.any():
            return
        (low, high), known = self._range(kind), dict[int, float]()
        before = self.bits.get(kind, low)
        low = max(low, before)

        def errs(bits: int) -> float:
            if bits not in known:
                wrong = by(self._of(kind, bits), bias=None).double() - true
                ratio = wrong.square().sum() / true.square().sum().clamp(min=1e-300)
                known[bits] = math.sqrt(ratio.nan_to_num(math.inf, math.inf).item())
            return known[bits]

        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if errs(middle) <= self.error else (middle + 1, high)
        same = self.errors.get(kind, 0.0) if low == before else 0.0
        self.bits[kind], self.errors[kind] = low, max(errs(low), same)

    def _whole(self, kind: str) -> bool:
        quantizers = [self.recipe.slots[kind, name].quantizer for name in OPERANDS[kind]]
        return all(isinstance(format_of(q), IntFormat) for q in quantizers)

    def _range(self, kind: Kind) -> tuple[int, int]:
        return _WHOLE if self._whole(kind) else _MANTISSA

    def _of(self, kind: Kind, bits: int) -> Accumulator:
        if self._whole(kind):
            return integer(bits, overflow="saturate")
        return sequential(FloatFormat(8, bits))

    def wide(self) -> Recipe:
        """The layer's recipe with accumulators that lose nothing, or what fp32 does."""
        wide = {
            kind: replace(
                getattr(self.recipe, kind),
                accumulator=exact() if self._whole(kind) else sequential(fp32),
            )
            for kind, unit in self.recipe.units.items() if isinstance(unit, Accumulator)
        }  # fmt: skip
        return replace(self.recipe, **wide)

    def width(self, kind: Kind) -> int:
        """Of the accumulator, in bits."""
        return self.bits[kind] + (0 if self._whole(kind) else 9)

    def accumulator(self, kind: Kind) -> Accumulator | None:
        """The narrowest; None where the widest errs too much."""
        return self._of(kind, self.bits[kind]) if self.errors[kind] <= self.error else None

    def override(self) -> Recipe:
        """The layer's recipe with what was found."""
        changed: dict[str, Any] = {}
        for kind in self.bits:
            changed[kind] = replace(getattr(self.recipe, kind), accumulator=self.accumulator(kind))
        if getattr(changed.get("grad_weight"), "accumulator", None) is not None:
            changed["grad_weight"] = replace(changed["grad_weight"], unit="fp32")
        return replace(self.recipe, **changed)
