"""quantize: a model whose matrix products, and norms if asked, follow a recipe."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from . import deviations, layers, recipes
from .attention import (
    MATMUL_SHAPES,
    Matmul,
    QMatmul,
    QMultiheadAttention,
    QScaledDotProductAttention,
    QTransformerEncoderLayer,
    ScaledDotProductAttention,
)
from .classes import joined
from .conversion import Conversion, watch_first_forward
from .deviations import Deviation
from .layer_state import LayerState
from .layers import QProduct, Shape
from .norm import can_convert, convert_norm_, norm_slots
from .norm_recipe import NormRecipe
from .recipe import Recipe

Override = Recipe | int | None

_PRODUCTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: layers.QLinear,
    nn.Conv1d: layers.QConv1d,
    nn.Conv2d: layers.QConv2d,
    nn.Conv3d: layers.QConv3d,
    nn.ConvTranspose1d: layers.QConvTranspose1d,
    nn.ConvTranspose2d: layers.QConvTranspose2d,
    nn.ConvTranspose3d: layers.QConvTranspose3d,
    Matmul: QMatmul,
    ScaledDotProductAttention: QScaledDotProductAttention,
    nn.MultiheadAttention: QMultiheadAttention,
    nn.TransformerEncoderLayer: QTransformerEncoderLayer,
}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_OTHER_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
)
#: methods in which a product layer does its work: a subclass that has its own is not ours to guess
_WORK = ("forward", "_conv_forward", "_sa_block", "_ff_block", "_output_padding", "__call__")


def quantize(
    model: nn.Module,
    bits: int | None = None,
    *,
    recipe: Recipe | str = "int8",
    norm: str | Deviation | NormRecipe | None = None,
    overrides: Mapping[str, Override] | None = None,
    seed: int = 0,
) -> nn.Module:
    """A copy of `model` whose products follow `recipe`; the original is untouched.

    bits        2..16 for a recipe that takes them; None: the recipe's own
    recipe      a Recipe or the name of one (see `qtrain.recipes.names()`)
    norm        batch-norm's deviation ("l2", "l1", "linf", "topk", "range"), or a NormRecipe;
                None: what the recipe says (int8: left alone)
    overrides   module-name patterns (fnmatch; a pattern that names a container covers all below)
                -> None (leave), an int (bits) or a Recipe; the first match wins
    seed        of the rounding noise

    Raises ValueError/TypeError for a setting that cannot be honoured, an override that matches
    nothing, a model without a layer to convert or one that is converted already.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, need a torch.nn.Module")
    converted = copy.deepcopy(model)
    return quantize_(
        converted, bits, recipe=recipe, norm=norm, overrides=overrides, seed=seed, _copied=True
    )


def quantize_(
    model: nn.Module,
    bits: int | None = None,
    *,
    recipe: Recipe | str = "int8",
    norm: str | Deviation | NormRecipe | None = None,
    overrides: Mapping[str, Override] | None = None,
    seed: int = 0,
    _copied: bool = False,
) -> nn.Module:
    """`quantize` in place: parameters stay the objects they were, so an optimizer keeps working.

    Returns the model (a layer that is itself the root changes class as well).  Nothing is changed
    when an error is raised.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, need a torch.nn.Module")
    if any(isinstance(module, LayerState) for module in model.modules()):
        raise ValueError("model: it is quantized already; quantize the original model instead")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: got {seed!r}, need an integer")
    choose = _Chooser(_base(recipe, bits, norm), norm, overrides or {})
    plan = [(name, module, choose(name)) for name, module in _targets(model)]
    choose.check_all_used()
    _check_attention(model, {name: own for name, _, own in plan})
    record = Conversion(copied=_copied, recipe=str(choose.base))
    work = []
    for name, module, own in plan:
        reason = _left(module, own)
        if reason is not None:
            record.left[name or "(model)"] = f"{type(module).__name__}: {reason}"
            if own is None:
                record.on_purpose.add(name or "(model)")
        else:
            assert own is not None
            work.append((name, module, own))
    if not work:
        raise ValueError(
            f"model: {type(model).__name__} has nothing to convert: no linear, convolution, "
            f"attention or (with norm=) batch-norm layer outside the overrides"
            + "".join(f"\n  left {name}: {reason}" for name, reason in record.left.items())
        )
    # build everything first: an error must leave the model as it was
    streams = iter(range(2**31))
    built = [(m, _children(name, m, own, seed, streams)) for name, m, own in work]
    for (name, module, own), (_, children) in zip(work, built, strict=True):
        record.converted[name or "(model)"] = (_plain_type(module) or type(module)).__name__
        _swap_(module, own, children)
    _without_fast_paths_(model)
    record.attach(model)
    watch_first_forward(model)
    return model


def _check_attention(model: nn.Module, chosen: Mapping[str, Recipe | None]) -> None:
    """ValueError where an attention layer is left, but not the projection it reads directly."""
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and chosen.get(name, 0) is None:
            projection = f"{name}.out_proj".lstrip(".")
            if chosen.get(projection) is not None:
                raise ValueError(
                    f"overrides: {projection!r} cannot be quantized while {name or '(model)'!r}, "
                    f"which reads its weight directly, is left; leave both or neither"
                )


def _without_fast_paths_(model: nn.Module) -> None:
    """Take torch's inference fast paths, which skip a module's children, off whatever holds a
    layer that is quantized; what is off entirely keeps them."""
    for module in model.modules():
        if not isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer):
            continue
        products = [child for child in module.modules() if isinstance(child, QProduct)]
        if all(product.recipe.products_off for product in products):
            continue
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
        elif _left_type(module) is None:
            _change_class_(module)


def _base(
    recipe: Recipe | str, bits: int | None, norm: str | Deviation | NormRecipe | None
) -> Recipe:
    if not isinstance(recipe, Recipe | str):
        raise TypeError(
            f"recipe: got {recipe!r}, need a Recipe or one of {', '.join(recipes.names())}"
        )
    base = recipes.get(recipe) if isinstance(recipe, str) else recipe
    if bits is not None:
        base = base.at(bits)
    return _with_norm(base, norm)


def _with_norm(recipe: Recipe, norm: str | Deviation | NormRecipe | None) -> Recipe:
    if norm is None:
        return recipe
    if isinstance(norm, str):
        norm = deviations.get(norm)
    if isinstance(norm, Deviation):
        # the recipe's outputs are rounded after every converted layer, norms included
        own = recipe.norm or NormRecipe(activation=recipe.activation)
        norm = replace(own, deviation=norm)
    if not isinstance(norm, NormRecipe):
        raise TypeError(
            f"norm: got {norm!r}, need one of {', '.join(deviations.names())}, a Deviation, a "
            f"NormRecipe or None"
        )
    return replace(recipe, norm=norm)


class _Chooser:
    """The recipe of each layer by name, and the account of which overrides were used."""

    def __init__(
        self,
        base: Recipe,
        norm: str | Deviation | NormRecipe | None,
        overrides: Mapping[str, Override],
    ) -> None:
        self.base = base
        self.rules: list[tuple[str, Recipe | None]] = []
        for pattern, value in overrides.items():
            if not isinstance(pattern, str):
                raise TypeError(f"overrides: pattern {pattern!r} is not a string")
            if value is None or isinstance(value, Recipe):
                self.rules.append((pattern, value))
            elif isinstance(value, int) and not isinstance(value, bool):
                self.rules.append((pattern, _with_norm(base.at(value), norm)))
            else:
                raise TypeError(
                    f"overrides[{pattern!r}]: got {value!r}, need None (leave), an int (bits) or "
                    f"a Recipe"
                )
        self.used = {pattern: 0 for pattern, _ in self.rules}
        self.names: list[str] = []

    def __call__(self, name: str) -> Recipe | None:
        self.names.append(name)
        parts = name.split(".")
        lineage = [".".join(parts[: i + 1]) for i in range(len(parts))]
        chosen: Recipe | None = self.base
        found = False
        for pattern, value in self.rules:
            if any(fnmatchcase(part, pattern) for part in lineage):
                self.used[pattern] += 1
                if not found:
                    chosen, found = value, True
        return chosen

    def check_all_used(self) -> None:
        unused = [pattern for pattern, count in self.used.items() if not count]
        if unused:
            known = ", ".join(name for name in self.names[:12] if name)
            more = ", ..." if len(self.names) > 12 else ""
            raise ValueError(f"overrides: {unused} match no layer; layers are {known}{more}")


def _targets(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every layer that can be converted, or that holds a product and cannot, once."""
    inside: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        if isinstance(module, tuple(_PRODUCTS) + _BATCH_NORMS) or _holds_weights(module):
            yield name, module
            if isinstance(module, nn.MultiheadAttention) and _left_type(module) is not None:
                # left whole: its output projection is read directly, not called
                inside.update(id(child) for child in module.modules())


def _holds_weights(module: nn.Module) -> bool:
    """Whether an unknown module holds weights (two axes or more) of its own."""
    if isinstance(module, _OTHER_NORMS):
        return False
    own = [p for p in module.parameters(recurse=False) if p is not None]
    parametrized = type(module).__module__.startswith("torch.nn.utils.parametrize")
    return any(p.dim() >= 2 for p in own) and not parametrized and not _is_parametrization(module)


def _is_parametrization(module: nn.Module) -> bool:
    return isinstance(module, nn.utils.parametrize.ParametrizationList)


def _plain_type(module: nn.Module) -> type[nn.Module] | None:
    """The torch type whose conversion fits the module, or None."""
    for cls in type(module).__mro__:
        if cls in _PRODUCTS:
            return cls
    return None


def _left_type(module: nn.Module) -> str | None:
    """Why a module of this type cannot be converted, or None."""
    plain = _plain_type(module)
    if plain is None:
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            return "recurrent layers are not converted; kept in full precision"
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            return "a lookup, no product; kept in full precision"
        return "no conversion for this type; kept in full precision"
    for cls in type(module).__mro__:
        if cls is plain:
            return None
        own = [name for name in _WORK if name in vars(cls)]
        if own and not cls.__module__.startswith("torch.nn.utils.parametrize"):
            return f"a subclass of {plain.__name__} with its own {own[0]}; kept in full precision"
    raise AssertionError(module)


def _left(module: nn.Module, recipe: Recipe | None) -> str | None:
    """Why a layer is left as it is, or None where it is converted."""
    if recipe is None:
        return "left by an override"
    if "forward" in vars(module):
        return "its forward was replaced on the object; kept in full precision"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        raise ValueError(
            f"model: a {type(module).__name__} has no sizes yet; run one batch through the model, "
            f"then quantize it"
        )
    if isinstance(module, _BATCH_NORMS):
        if recipe.norm is None or recipe.norm.is_off:
            return "norms are left unless asked (norm=)"
        return None if can_convert(module) else "a subclass of batch-norm; kept in full precision"
    return _left_type(module)


def _device(module: nn.Module) -> torch.device | None:
    tensors: Iterable[Tensor] = module.parameters()
    return next((t.device for t in tensors), None)


def _children(
    name: str, module: nn.Module, recipe: Recipe, seed: int, streams: Iterator[int]
) -> dict[str, LayerState]:
    """The state-holding children a layer gains; ValueError where a setting cannot be honoured."""
    device = _device(module)

    def product(suffix: str, shapes: tuple[Shape, Shape, Shape]) -> QProduct:
        full = ".".join(part for part in (name, suffix) if part) or "(model)"
        try:
            return QProduct(
                recipe,
                input_shape=shapes[0],
                weight_shape=shapes[1],
                output_shape=shapes[2],
                name=full,
                seed=seed,
                stream=next(streams),
                device=device,
            )
        except ValueError as error:
            raise ValueError(f"layer {full!r}: {error}") from error

    if isinstance(module, _BATCH_NORMS):
        assert recipe.norm is not None
        slots = norm_slots(module, recipe.norm)
        return {
            "state": LayerState(slots, name=name, seed=seed, stream=next(streams), device=device)
        }
    if isinstance(module, nn.TransformerEncoderLayer):
        return {}
    if isinstance(module, nn.MultiheadAttention):
        size = module.embed_dim
        inputs = (size, module.kdim, module.vdim)
        children = {
            key: product(key, ((None, n), (1, size, n), (None, size)))
            for key, n in zip(("q_proj", "k_proj", "v_proj"), inputs, strict=True)
        }
        return {**children, **{k: product(k, MATMUL_SHAPES) for k in ("scores", "context")}}
    if isinstance(module, ScaledDotProductAttention):
        return {key: product(key, MATMUL_SHAPES) for key in ("scores", "context")}
    if isinstance(module, Matmul):
        return {"product": product("", MATMUL_SHAPES)}
    plain = _plain_type(module)
    assert plain is not None
    quantized: Any = _PRODUCTS[plain]
    shapes = quantized.shapes(module)
    return {"product": product("", shapes)}


def _swap_(module: nn.Module, recipe: Recipe, children: dict[str, LayerState]) -> None:
    """Change a layer's class and give it its children, in place."""
    if isinstance(module, _BATCH_NORMS):
        assert recipe.norm is not None
        convert_norm_(module, recipe.norm, children["state"])
        return
    if not isinstance(module, nn.TransformerEncoderLayer):  # see _without_fast_paths_
        _change_class_(module)
    for key, child in children.items():
        child.train(module.training)
        module.add_module(key, child)


def _change_class_(module: nn.Module) -> None:
    plain = _plain_type(module)
    assert plain is not None
    quantized, own = _PRODUCTS[plain], type(module)
    # a subclass or a parametrized layer keeps its own class in the line
    module.__class__ = quantized if own is plain else joined(quantized, own)
