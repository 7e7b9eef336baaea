"""Modules changed in place: what a layer gains, its quantized class, joined with a subclass of the
torch layer, containers that fuse, and torch's fast paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from torch import nn

from ..layer_state import LayerState, device_of
from ..layers.embedding import QLookup
from ..layers.fused import QSequential, is_pair
from ..norms.module import QNorm
from ..products.call import located
from ..products.module import QProduct, products_of
from ..products.operands import refuse_unscalable
from ..recipe import Recipe
from .joined import base_class, joined, set_class_
from .kinds import (
    convert_norm_,
    is_norm,
    norm_slots,
    operation_of,
    plain_type,
    products,
    quantized_class,
)

#: what a subclass must have left to nn.Sequential: how it runs, and how it is pickled
_INHERITED = ("forward", "__reduce__", "__reduce_ex__")


#: layers to convert, each with the recipe of each child it gains
Work = Sequence[tuple[str, nn.Module, Mapping[str, Recipe]]]
Children = Sequence[dict[str, LayerState]]


def built(model: nn.Module, work: Work, seed: int) -> Children:
    """The children of each of these layers; an error leaves the model as it was."""
    streams = iter(range(2**31))
    return [_children(model, *entry, seed, streams) for entry in work]


def swap_(model: nn.Module, work: Work, children: Children) -> None:
    """Convert these layers of a model, each under its recipes, in place."""
    for (_, module, recipes), gained in zip(work, children, strict=True):
        _swap_(module, recipes, gained)
    switch_fast_paths_(model)


def _children(
    model: nn.Module,
    name: str,
    module: nn.Module,
    recipes: Mapping[str, Recipe],
    seed: int,
    streams: Iterator[int],
) -> dict[str, LayerState]:
    """The state-holding children a layer gains; ValueError where a setting cannot be honoured."""
    device = device_of(module, model)
    if is_norm(module):
        norm = recipes["state"].norm
        assert norm is not None
        slots = norm_slots(module, norm)
        state = LayerState(slots, name=name, seed=seed, stream=next(streams), device=device)
        return {"state": state}
    children: dict[str, LayerState] = {}
    for key, shapes in products(module).items():
        path = ".".join(
            part for part in (name, "" if key in ("product", "lookup") else key) if part
        )
        path = path or "(model)"
        try:
            operation = operation_of(module)
            if operation is not None:
                refuse_unscalable(operation, recipes[key], shapes)
            kind = QLookup if key == "lookup" else QProduct
            children[key] = kind(
                recipes[key], shapes, name=path, seed=seed, stream=next(streams), device=device
            )
        except (TypeError, ValueError) as error:
            raise located(error, f"layer {path!r}") from error
    return children


def _swap_(
    module: nn.Module, recipes: Mapping[str, Recipe], children: dict[str, LayerState]
) -> None:
    """Change a layer's class and give it its children, in place."""
    if is_norm(module):
        norm = recipes["state"].norm
        assert norm is not None
        convert_norm_(module, norm, children["state"])
        return
    plain = plain_type(module)
    assert plain is not None
    change_class_(module, quantized_class(module), plain)
    for key, child in children.items():
        child.train(module.training)
        module.add_module(key, child)


def change_class_(module: nn.Module, quantized: type[nn.Module], plain: type[nn.Module]) -> None:
    """Give a `plain` layer, or an object of a subclass of it, the forward of `quantized`, in place.

    A subclass stays in the line.
    """
    base = base_class(module)
    set_class_(module, quantized if base is plain else joined(base, quantized, base))


def fuse_sequentials_(model: nn.Module) -> None:
    """Make a QSequential, in place, of every nn.Sequential in which a converted norm is followed by
    a ReLU; of objects of its subclasses too where these have no forward of their own."""
    for module in model.modules():
        if (
            isinstance(module, nn.Sequential)
            and "forward" not in vars(module)
            and all(getattr(type(module), own) is getattr(nn.Sequential, own) for own in _INHERITED)
            and any(is_pair(norm, relu) for norm, relu in pairwise(module))
        ):
            change_class_(module, QSequential, nn.Sequential)


#: torch's inference fast paths, which skip a module's children: where one is switched, and off
_FAST = {
    nn.TransformerEncoder: ("use_nested_tensor", False),
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),  # of another activation: none
}


def switch_fast_paths_(model: nn.Module) -> None:
    """Take torch's inference fast paths off whatever holds a layer or a norm that follows a recipe;
    what is off entirely has them, again where need be."""
    for module in model.modules():
        for kind, (name, off) in _FAST.items():
            if isinstance(module, kind):
                own = vars(module).setdefault("_fast_path", getattr(module, name))
                plain = not any(isinstance(child, QNorm) for child in module.modules())
                plain = plain and all(p.recipe.products_off for p in products_of(module))
                setattr(module, name, own if plain else off)
