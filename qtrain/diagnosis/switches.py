"""Parts of a converted model put back to full precision, for as long as a measurement takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from quantizers import OFF, Off

from ..inspection.probes import FULL
from ..inspection.roles import OPERAND_ROLES, RESULTS, SLOT_OF
from ..products.module import products_of
from ..products.operations import KINDS, Kind
from ..recipe import OPERANDS, Recipe

#: A layer's name and one of the roles of `PRODUCT_ROLES`, as a report names both.
Part = tuple[str, str]

#: What is rounded in each product: its two operands, and the output of the forward.
PRODUCT_ROLES: dict[Kind, tuple[str, ...]] = {
    kind: (
        *(OPERAND_ROLES[kind, operand] for operand in OPERANDS[kind]),
        *((RESULTS[kind],) if kind == "forward" else ()),
    )
    for kind in KINDS
}


def rounded_roles(recipe: Recipe) -> tuple[str, ...]:
    """The roles that a recipe rounds itself, in the order of `PRODUCT_ROLES`; not an operand of a
    backward product that is the forward's."""

    def rounded(role: str) -> bool:
        if role == "output":
            return recipe.activation is not None
        slot = recipe.slots[SLOT_OF[role]]
        return not (slot.reused or isinstance(slot.quantizer, Off))

    return tuple(role for roles in PRODUCT_ROLES.values() for role in roles if rounded(role))


def rounded_parts(model: nn.Module) -> tuple[Part, ...]:
    """(layer, role) of everything that a converted model's products round, in network order."""
    parts = {
        (product.name, role): None
        for product in products_of(model)
        for role in rounded_roles(product.recipe)
    }
    return tuple(parts)


def without(recipe: Recipe, roles: Iterable[str]) -> Recipe:
    """The recipe with these roles in full precision.

    A backward product that takes its operand as the forward quantized it takes it as it then is:
    without "input" there is no quantized input in grad_weight either.  ValueError for other roles
    than those of `PRODUCT_ROLES`.
    """
    known = [role for own in PRODUCT_ROLES.values() for role in own]
    changed: dict[str, Any] = {}
    for role in roles:
        if role not in known:
            raise ValueError(f"role: got {role!r}, need one of {', '.join(known)}")
        if role == "output":
            changed |= {"activation": None, "narrow": False}
            continue
        product, operand = SLOT_OF[role]
        changed[product] = replace(changed.get(product, getattr(recipe, product)), **{operand: OFF})
    if "forward" in changed or "grad_weight" in changed:  # bf16 units hold no full precision
        own = changed.get("grad_weight", recipe.grad_weight)
        changed["grad_weight"] = replace(own, unit="fp32")
    return replace(recipe, **changed)


@contextmanager
def switched_off(model: nn.Module, parts: Iterable[Part]) -> Iterator[None]:
    """Within it, these parts of a converted model run in full precision.

    With every part off a layer is torch's own, bit for bit; norms stay as converted.  Where a model
    keeps outputs in 16 bits (`Recipe.narrow`), a layer that is given 16 bits still hands on as
    many, and attention is computed in its parts.  ValueError for a part that is not among
    `rounded_parts(model)`.
    """
    chosen = list(parts)
    known = rounded_parts(model)
    unknown = [part for part in chosen if part not in known]
    if unknown:
        layer, role = unknown[0]
        own = [r for name, r in known if name == layer]
        raise ValueError(
            f"part: got {unknown[0]!r}, but the model rounds "
            + (f"no {role!r} there, only {', '.join(own)}" if own else f"nothing in {layer!r}")
        )
    changed = [
        (product, product.recipe, [role for name, role in chosen if name == product.name])
        for product in products_of(model)
    ]
    narrow = any(recipe.narrow for _, recipe, _ in changed)
    try:
        for product, recipe, roles in changed:
            here = set(roles) & set(rounded_roles(recipe))  # layers of one name may differ
            if here:
                off = without(recipe, here)
                # torch's own layers take no input that is narrower than their weights
                product.recipe = FULL if narrow and off.products_off else off
        yield
    finally:
        for product, recipe, _ in changed:
            product.recipe = recipe
