"""Recipes with wider quantizers in some of their slots, and the overrides that hold them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from quantizers import IntFormat, Off, Quantizer
from quantizers.protocol import format_of

from ..conversion.overrides import Asked, Chooser, Override
from ..inspection.row import SLOT_OF
from ..names import hits
from ..recipe import Recipe
from ..recipe.slots import short
from .parts import rounded_roles, without

#: What parts become: full precision, bits, or what a recipe has in their place.
Target = Recipe | int | None


def wider(recipe: Recipe, roles: Collection[str], to: Target) -> Recipe:
    """The recipe with these roles as `to` has them, wherever that has more bits; itself, where none
    has.

    Quantizers alone are taken: transforms, accumulators and rounding units stay.  An operand that a
    backward product takes as the forward quantized it follows the forward's.  ValueError for bits
    where a quantizer can have no other number of them.
    """
    found = {role: _target(recipe, role, to) for role in roles if role in rounded_roles(recipe)}
    found = {r: q for r, q in found.items() if _bits(q) > _bits(_own(recipe, r))}
    if not found:
        return recipe
    name = f"{recipe.name}, wider {' + '.join(found)}"
    if to is None:
        return replace(without(recipe, found), name=name, with_bits=None)
    changed: dict[str, Any] = {"name": name, "with_bits": None}
    for role, quantizer in found.items():
        if role == "output":
            assert isinstance(to, Recipe)
            changed |= {"activation": quantizer, "narrow": to.narrow}
        else:
            product, operand = SLOT_OF[role]
            before = changed.get(product, getattr(recipe, product))
            changed[product] = replace(before, **{operand: quantizer})
    return replace(recipe, **changed)


def bits_added(recipe: Recipe, other: Recipe) -> int:
    """How many bits an element of each rounded operand, and of the output, gains in all."""
    roles = rounded_roles(recipe)
    return sum(max(_bits(_own(other, role)) - _bits(_own(recipe, role)), 0) for role in roles)


def bits_of(recipe: Recipe) -> int:
    """How many bits the rounded operands, and the output, have in all."""
    return sum(_bits(_own(recipe, role)) for role in rounded_roles(recipe))


def everywhere(asked: Asked, roles: Collection[str], to: Target) -> tuple[Recipe, dict[str, Any]]:
    """What a model follows, recipe and overrides, with these roles of every layer wider."""
    rules = Chooser(asked).rules.items()
    others = {pattern: own and wider(own, roles, to) for pattern, own in rules}
    return wider(asked.base, roles, to), others


def before_others(
    model: nn.Module, asked: Asked, found: Mapping[str, Override]
) -> dict[str, Override]:
    """Overrides that were found, then those of the model that still decide something."""
    together = {**found, **{p: own for p, own in asked.overrides.items() if p not in found}}
    names = [name for name, _ in model.named_modules()]
    deciding = {own[0] for name in names if (own := hits(name, together))}
    idle = {p for p in together if p not in deciding and any(hits(name, [p]) for name in names)}
    return {pattern: own for pattern, own in together.items() if pattern not in idle - {*found}}


def _own(recipe: Recipe, role: str) -> Any:
    return recipe.activation if role == "output" else recipe.slots[SLOT_OF[role]].quantizer


def _target(recipe: Recipe, role: str, to: Target) -> Any:
    own = _own(recipe, role)
    if not isinstance(to, int):
        return None if to is None else _own(to, role)
    if role == "output":  # as Recipe.at keeps it
        return own
    if type(own) is Quantizer and isinstance(own.format, IntFormat):
        return replace(own, format=replace(own.format, bits=to))
    if recipe.with_bits is not None:
        return _own(recipe.at(to), role)
    raise ValueError(
        f"to: got {to}, but {role} is {short(own)} in recipe {recipe.name!r}, which has no bits to "
        f"set; give a recipe, to='fp8', whose quantizers are taken, or None"
    )


def _bits(quantizer: Any) -> int:
    """Of an element; 32 where it is not rounded, 0 where its calls alone show it."""
    if quantizer is None or isinstance(quantizer, Off):
        return 32
    fmt = format_of(quantizer)
    own: int = getattr(quantizer if fmt is None else fmt, "bits", 0)
    return own
