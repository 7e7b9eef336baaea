"""Parts of a converted model in groups that are put back to full precision together."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ..checks import choice
from ..layers.attention import QMultiheadAttention
from ..products.module import QProduct
from .switches import PRODUCT_ROLES, Part

#: A layer's name, and "all", one of its products, or one of its roles.
Unit = tuple[str, str]
#: How parts are grouped.
BY = ("layer", "product", "role")

#: role -> the product it is an operand, or the output, of
PRODUCTS = {role: product for product, roles in PRODUCT_ROLES.items() for role in roles}


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
    holders: dict[str, set[str]] = {}
    users: dict[str, set[str]] = {}  # parameter -> layers
    plain: dict[str, bool] = {}
    for module in model.modules():
        for key, child in module.named_children():
            if not isinstance(child, QProduct):
                continue
            own = {names[id(p)] for p in module.parameters(recurse=False)}
            holders.setdefault(child.name, set()).update(own)
            simple = key == "product" and "weight" in module._parameters
            plain[child.name] = plain.get(child.name, True) and simple
            for name in own:
                users.setdefault(name, set()).add(child.name)
    return {
        layer: own
        for layer, own in holders.items()
        if plain[layer] and owner[layer] == layer and all(users[name] == {layer} for name in own)
    }
