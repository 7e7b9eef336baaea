"""A converted model, and what it follows with some of its parts wider."""

from __future__ import annotations

import glob
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import nn

from ..conversion.overrides import Override
from ..conversion.record import Conversion
from ..conversion.watch import twin
from ..products.module import products_of
from ..recipe import Recipe
from .parts import Part, owners, rounded_parts
from .spliced import before_others, bits_added, bits_of, everywhere, wider


class Widened:
    """A copy of a model, for a batch (args, kwargs), and its parts in units.

    unit     of (layer, role, the module that an override reaches it by), its unit's name
    by, to, each   as `recommend` takes them, `to` no name

    model   the copy;  parts: all that it rounds;  units: those of each unit
    bits    of an element of each part, in all;  added: those that each unit gains (of a layer by
            None 1)
    """

    def __init__(
        self,
        model: nn.Module,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        unit: Callable[[str, str, str], str],
        by: str,
        to: Recipe | int | None,
        each: bool,
    ) -> None:
        self.model = twin(model, *args, **kwargs)
        record = Conversion.of(self.model)
        if record is None:
            raise ValueError(
                "model: no overrides reach it, as it was not converted by quantize; give the whole "
                "model" + Conversion.within(self.model, "recommend(..., model={})")
            )
        self._asked, self._by, self._to, self._each = record.asked, by, to, each
        self._owners = owners(self.model)
        self._recipes = {product.name: product.recipe for product in products_of(self.model)}
        self.parts = rounded_parts(self.model)
        self.units: dict[str, list[Part]] = {}
        for layer, role in self.parts:
            self.units.setdefault(unit(layer, role, self._owners[layer]), []).append((layer, role))
        self.bits = sum(map(bits_of, self._recipes.values()))
        self.added = {name: self._added(parts) for name, parts in self.units.items()}

    def asked_with(self, units: Collection[str]) -> tuple[Recipe, dict[str, Override]]:
        """The recipe and the overrides with these units wider, as `set_recipe` takes them."""
        if self._by == "layer":
            found: dict[str, Override] = {glob.escape(name): self._to for name in units}
            return self._asked.base, before_others(self.model, self._asked, found)
        if not self._each:
            roles = {role for name in units for _, role in self.units[name]}
            return everywhere(self._asked, roles, self._to)
        of: dict[str, set[str]] = {}
        for layer, role in (part for name in units for part in self.units[name]):
            of.setdefault(layer, set()).add(role)
        found = {glob.escape(n): wider(self._recipes[n], of[n], self._to) for n in of}
        return self._asked.base, before_others(self.model, self._asked, found)

    def _added(self, parts: Sequence[Part]) -> float:
        if self._by == "layer":
            if self._to is None:
                return 1.0
            whole = self._asked.base.at(self._to) if isinstance(self._to, int) else self._to
            return sum(bits_added(self._recipes[layer], whole) for layer in {n for n, _ in parts})
        return sum(
            bits_added(self._recipes[n], wider(self._recipes[n], [role], self._to))
            for n, role in parts
        )
