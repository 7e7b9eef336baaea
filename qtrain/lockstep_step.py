"""One step of several runs: what each computes, next to the reference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from quantizers import QTensor

from .histograms import value_counts
from .layer_products import Computed
from .layers import products_of
from .lockstep_rows import LockstepRow, Parting
from .operations import Kind
from .own_error import OwnError, own_error
from .products import folded
from .recipe import Recipe
from .recorder import OPERANDS, RESULTS
from .sampling import sampled
from .switches import rounded_roles

#: (layer, role, which call)
Event = tuple[str, str, int]

_NAMES: dict[Kind, tuple[str, str]] = {
    "forward": ("input", "weight"),
    "grad_input": ("grad_output", "weight"),
    "grad_weight": ("grad_output", "input"),
}

#: How many times the band's root-mean-square deviation the quantized run's may be.
DEVIATION = 3.0
#: What of a tensor is less than its own rounding in fp32, and no deviation.
_NOTHING = 2.0**-20


def recipes_of(model: nn.Module) -> dict[str, Recipe]:
    """Layer -> the recipe of its products."""
    return {product.name: product.recipe for product in products_of(model)}


@dataclass
class Step:
    """What is known of the tensors of one step; `samples` elements of each are looked at."""

    recipes: Mapping[str, Recipe]
    samples: int
    reference: dict[Event, Tensor] = field(default_factory=dict)
    quantized: dict[Event, Tensor] = field(default_factory=dict)
    before: dict[Event, Tensor] = field(default_factory=dict)
    own: dict[Event, OwnError | None] = field(default_factory=dict)
    events: dict[Event, None] = field(default_factory=dict)
    band: dict[Event, list[float]] = field(default_factory=dict)

    def see_reference(self, layer: str, call: int, product: Computed) -> None:
        for role, value in self._tensors(layer, product):
            self.reference[layer, role, call] = value

    def see_quantized(self, layer: str, call: int, product: Computed) -> None:
        for role, value in self._tensors(layer, product):
            self.events[layer, role, call] = None
            self.quantized[layer, role, call] = value
        for operand, x in zip(_NAMES[product.kind], (product.a, product.b), strict=True):
            event = layer, OPERANDS[product.kind, operand], call
            if event in self.quantized and x is not None:
                self.before[event] = self._some(x)

    def see_operand(
        self, layer: str, call: int, kind: Kind, operand: str, x: Tensor, q: QTensor
    ) -> None:
        event = layer, OPERANDS[kind, operand], call
        if event[1] in self._rounded(layer) and q.format is not None:
            quantizer = self.recipes[layer].slot(kind, operand)
            self.events[event] = None
            self.own[event] = own_error(quantizer, x, q, self.samples)

    def see_repeated(self, layer: str, call: int, product: Computed) -> None:
        for role, value in self._tensors(layer, product):
            exact = self.reference.get((layer, role, call))
            if exact is not None and exact.shape == value.shape:
                length = float((value - exact).norm())
                self.band.setdefault((layer, role, call), []).append(length)

    def rows(self, step: int) -> Iterator[LockstepRow]:
        """In the order of events; nothing of a tensor that the reference has not, or not finite.

        "deviation" stands for this step alone: whether it lasts is seen in those that follow.
        """
        for event in self.events:
            exact, value = self.reference.get(event), self.quantized.get(event)
            if exact is None or value is None or exact.shape != value.shape:
                continue
            length = float(exact.norm())
            if not math.isfinite(length):
                continue
            size = float((value - exact).norm())
            lengths = self.band.get(event, [])
            band = math.sqrt(sum(x * x for x in lengths) / len(lengths)) if lengths else math.inf
            own = self.own.get(event)
            if not math.isfinite(size):
                leaves = "not finite"
            elif own is not None and own.leaves:
                leaves = own.leaves
            else:
                leaves = "deviation" if size > DEVIATION * band + _NOTHING * length else ""
            unit = length if length > 0 else 1.0
            layer, role, call = event
            yield LockstepRow(
                step=step, layer=layer, role=role, call=call, deviation=size / unit,
                band=band / unit, error=None if own is None else own.size,
                bias=None if own is None else own.bias, leaves=leaves,
            )  # fmt: skip

    def parting(self, row: LockstepRow) -> Parting:
        """The row with the histograms of its tensors."""
        event = row.layer, row.role, row.call
        tensors = {
            "reference": self.reference.get(event),
            "before rounding": self.before.get(event),
            "quantized": self.quantized.get(event),
        }
        return Parting(
            row=row,
            values={
                name: tuple(value_counts(tensor).tolist())
                for name, tensor in tensors.items()
                if tensor is not None
            },
        )

    def _rounded(self, layer: str) -> tuple[str, ...]:
        return rounded_roles(self.recipes[layer])

    def _tensors(self, layer: str, product: Computed) -> Iterator[tuple[str, Tensor]]:
        """(role, samples in fp64) of the operands that the quantized run rounds, as they were
        multiplied, and of the result."""
        for operand, q in zip(_NAMES[product.kind], product.operands, strict=True):
            role = OPERANDS[product.kind, operand]
            if role in self._rounded(layer):
                yield role, self._multiplied(product, operand, q)
        yield RESULTS[product.kind], self._some(product.result)

    def _some(self, x: Tensor) -> Tensor:
        return _copied(sampled(x, limit=self.samples)[0])

    def _multiplied(self, product: Computed, operand: str, q: QTensor) -> Tensor:
        """An operand as it was multiplied, without a scale that was folded into it."""
        factor = None
        if operand == "grad_output":
            factor, _ = folded(product.operation, product.kind, product.a, product.operands[1])
        if factor is None:
            _, some = sampled(q.elements, q, limit=self.samples)
            return _copied(some)
        _, some, scale = sampled(q.elements, q, factor.expand(q.elements.shape), limit=self.samples)
        value, scale = _copied(some), _copied(scale)
        return torch.where(scale == 0, torch.zeros_like(value), value / scale)


def _copied(x: Tensor | QTensor) -> Tensor:
    value = x if isinstance(x, Tensor) else x.dequantize()
    return value.detach().flatten().to(torch.float64, copy=True)
