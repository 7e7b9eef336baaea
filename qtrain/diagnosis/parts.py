"""Parts of a converted model: put back to full precision for as long as a measurement takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from quantizers import OFF, Off

from ..checks import choice
from ..inspection.probes import FULL
from ..inspection.row import OPERAND_ROLES, RESULTS, SLOT_OF
from ..layers.attention import QMultiheadAttention
from ..products.module import QProduct, products_of
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


#: role -> the product it is an operand, or the output, of
PRODUCTS = {role: product for product, roles in PRODUCT_ROLES.items() for role in roles}

#: A layer's name, and "all", one of its products, or one of its roles.
Unit = tuple[str, str]
#: How parts are grouped.
BY = ("layer", "product", "role")


def rounded_roles(recipe: Recipe) -> tuple[str, ...]:
    """The roles that a recipe rounds itself, in the order of `PRODUCT_ROLES`; not an operand of a
    backward product that is the forward's."""

    def rounded(role: str) -> bool:
        if role == "output":
            return recipe.activation is not None
        slot = recipe.slots[SLOT_OF[role]]
        return not (slot.reused or isinstance(slot.quantizer, Off))

    return tuple(filter(rounded, PRODUCTS))


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
    without "input" there is no quantized input in grad_weight either.  What takes such an operand
    is summed without an accumulator.  ValueError for other roles
    than those of `PRODUCT_ROLES`.
    """
    changed: dict[str, Any] = {}
    for role in roles:
        if choice("role", role, PRODUCTS) == "output":
            changed |= {"activation": None, "narrow": False}
            continue
        own, operand = SLOT_OF[role]
        takes = [p for p in KINDS if getattr(getattr(recipe, p), operand, OFF) is None]
        for product in (own, *(takes if own == "forward" else ())):
            others: dict[str, Any] = {"accumulator": None}  # units for narrow operands hold none
            others |= {operand: OFF} if product == own else {}
            others |= {"unit": "fp32"} if product == "grad_weight" else {}
            changed[product] = replace(changed.get(product, getattr(recipe, product)), **others)
    return replace(recipe, **changed)


@contextmanager
def switched_off(model: nn.Module, parts: Iterable[Part]) -> Iterator[None]:
    """Within it, these parts of a converted model run in full precision.

    With every part off a layer is torch's own, bit for bit; norms and lookups stay as converted.
    Where a model keeps outputs in 16 bits (`Recipe.narrow`), a layer that is given 16 bits still
    hands on as many, and attention is computed in its parts.  ValueError for a part that is not
    among `rounded_parts(model)`.
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


def grouped(parts: Iterable[Part], by: str) -> dict[Unit, tuple[Part, ...]]:
    """unit -> its parts, in the parts' order; by: one of `BY`, else ValueError."""
    choice("by", by, BY)
    found: dict[Unit, tuple[Part, ...]] = {}
    for layer, role in parts:
        unit = layer, {"layer": "all", "product": PRODUCTS[role], "role": role}[by]
        found[unit] = (*found.get(unit, ()), (layer, role))
    return found


def owners(model: nn.Module) -> dict[str, str]:
    """layer -> the module by whose name an override reaches it.

    That is the layer itself, or the attention that it is a product or the output projection of:
    an attention is converted, or left, whole.
    """
    found: dict[str, str] = {}
    for module in model.modules():  # an attention before its output projection
        for key, child in module.named_children():
            if isinstance(child, QProduct):
                container = child.name.removesuffix(key).removesuffix(".") or "(model)"
                found.setdefault(child.name, child.name if key == "product" else container)
        if isinstance(module, QMultiheadAttention):
            projection = getattr(module.out_proj, "product", None)
            if isinstance(projection, QProduct):
                found[projection.name] = found[module.q_proj.name]
    return found


def own_parameters(model: nn.Module) -> dict[str, set[str]]:
    """layer -> the names of its parameters, where its grad_weight product is felt in their
    gradients alone.

    Layers whose weight is a parameter that no other layer has: not attention or its output
    projection, not a parametrized layer, nor one that shares its weight.
    """
    owner = owners(model)
    names = {id(p): name for name, p in model.named_parameters()}
    holders: dict[str, list[nn.Module]] = {}
    for module in model.modules():
        for child in module.children():
            if isinstance(child, QProduct):
                holders.setdefault(child.name, []).append(module)
    found = {
        layer: {names[id(p)] for module in own for p in module.parameters(recurse=False)}
        for layer, own in holders.items()
    }
    users = Counter(name for own in found.values() for name in own)
    return {
        layer: own
        for layer, own in found.items()
        if owner[layer] == layer
        and all("weight" in module._parameters for module in holders[layer])
        and all(users[name] == 1 for name in own)
    }
