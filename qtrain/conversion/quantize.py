"""quantize: a model whose matrix products, and norms if asked, follow a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from .. import checks
from ..copies import copied
from ..layer_state import LayerState, device_of
from ..norms.deviations import Deviation
from ..norms.module import QNorm
from ..norms.recipe import NormRecipe
from ..products.call import located
from ..products.module import QProduct, products_of
from ..recipe import Recipe
from .kinds import (
    convert_norm_,
    is_any_norm,
    is_norm,
    left,
    norm_slots,
    plain_type,
    products,
    quantized_class,
    targets,
)
from .overrides import Chooser, Override, base_recipe
from .record import Conversion
from .stale_optimizer import watch_optimizers
from .swap import change_class_, fuse_sequentials_
from .unfollowed import (
    names_groups_alone,
    refuse_uncovered,
    warn_of_groups,
    warn_of_norms,
)
from .watch import watch_first_forward


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
    norm        the norms' deviation ("l2", "l1", "linf", "topk", "range", "none"), or a NormRecipe:
                of batch-norms, LayerNorm, RMSNorm and GroupNorm; None: what the recipe says (int8:
                left alone)
    overrides   module-name patterns (fnmatch; a pattern that names a container covers all below)
                -> None (leave), an int (bits), a Recipe or its name; the first match wins
    seed        of the rounding noise

    Raises ValueError/TypeError for a setting that cannot be honoured, an override that matches
    nothing, a model without a layer to convert or one that is converted already.
    """
    checks.module(model)
    try:
        converted = copied(model)
    except RuntimeError as error:  # tensors with a graph, as torch.nn.utils.weight_norm keeps
        raise ValueError(
            f"model: it cannot be copied ({error}); use quantize_(model) to convert it in place, "
            f"or torch.nn.utils.parametrizations instead of the old weight_norm"
        ) from error
    quantize_(
        converted, bits, recipe=recipe, norm=norm, overrides=overrides, seed=seed, _copied=True
    )
    watch_optimizers(model, converted)
    return converted


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
    checks.module(model)
    if any(isinstance(module, LayerState) for module in model.modules()):
        raise ValueError("model: it is quantized already; quantize the original model instead")
    checks.integer("seed", seed)
    choose = Chooser(base_recipe(recipe, bits, norm), norm, overrides)
    plan = [(name, module, choose(name)) for name, module in targets(model)]
    choose.check_all_used()
    _check_attention(model, {name: own for name, _, own in plan})
    own_norm = "" if choose.base.norm is None else f"; norm {choose.base.norm}"
    record = Conversion(copied=_copied, recipe=f"{choose.base}{own_norm}")
    work = []
    alike = {}  # norms that an override leaves what they were
    for name, module, own in plan:
        shown, reason = name or "(model)", left(module, own)
        if reason is not None:
            record.left[shown] = f"{type(module).__name__}: {reason}"
            if own is None:
                record.on_purpose.add(shown)
            elif own.norm is not None and not own.norm.is_off and is_any_norm(module):
                record.norms_left[shown] = record.left[shown]
            continue
        assert own is not None
        work.append((name, module, own))
        norm_alone = is_norm(module)
        given, base = (own.norm, choose.base.norm) if norm_alone else (own, choose.base)
        if given != base:
            record.overridden[shown] = str(given)
        elif norm_alone:
            alike[name] = "it is a norm, which the recipe's norm= decides, not its bits"
    choose.check_all_honoured(record.left | alike)
    converted_norms = sum(is_norm(module) for _, module, _ in work)
    if norm is not None and not converted_norms:
        refuse_uncovered(model, norm, plan, record.norms_left)
    if not work:
        raise ValueError(
            f"model: {type(model).__name__} has nothing to convert: no linear, convolution, "
            f"attention or (with norm=) norm layer outside the overrides"
            + "".join(f"\n  left {name}: {reason}" for name, reason in record.left.items())
        )
    ungrouped = [  # layers with a weight that has a scale per group, and one group
        name or "(model)"
        for name, module, own in work
        if not is_norm(module)
        and any(names_groups_alone(own, shapes[1]) for shapes in products(module).values())
    ]
    kinds = {n or "(model)": (plain_type(m) or type(m)).__name__ for n, m, _ in work}
    _convert_(model, work, seed)
    record.converted |= kinds
    fuse_sequentials_(model)
    record.attach(model)
    watch_first_forward(model)
    level = 4 if _copied else 3  # to the caller of quantize, or of quantize_
    warn_of_norms(model, converted_norms, record.norms_left, level)
    warn_of_groups(ungrouped, level)
    return model


def convert_left_(model: nn.Module, recipe: Recipe) -> None:
    """Convert under `recipe`, in place, every layer that could be converted and is not.

    For a copy on which something is measured; layers that are converted keep what they have.
    """
    work = [
        (name, module, recipe)
        for name, module in targets(model)
        if left(module, recipe) is None and not isinstance(module, quantized_class(module))
    ]
    _convert_(model, work, 0)


def _convert_(model: nn.Module, work: Sequence[tuple[str, nn.Module, Recipe]], seed: int) -> None:
    """Convert these layers of a model, each under its recipe, in place."""
    # build everything first: an error must leave the model as it was
    streams = iter(range(2**31))
    built = [_children(model, *entry, seed, streams) for entry in work]
    for (_, module, own), children in zip(work, built, strict=True):
        _swap_(module, own, children)
    _without_fast_paths_(model)


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
    layer or a norm that was converted; what is off entirely keeps them."""
    for module in model.modules():
        if not isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer):
            continue
        plain = not any(isinstance(child, QNorm) for child in module.modules())
        if plain and all(product.recipe.products_off for product in products_of(module)):
            continue
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
        else:  # of another activation, as torch takes it, there is no such path
            module.activation_relu_or_gelu = 0


def _children(
    model: nn.Module,
    name: str,
    module: nn.Module,
    recipe: Recipe,
    seed: int,
    streams: Iterator[int],
) -> dict[str, LayerState]:
    """The state-holding children a layer gains; ValueError where a setting cannot be honoured."""
    device = device_of(module, model)
    if is_norm(module):
        assert recipe.norm is not None
        slots = norm_slots(module, recipe.norm)
        state = LayerState(slots, name=name, seed=seed, stream=next(streams), device=device)
        return {"state": state}
    children: dict[str, LayerState] = {}
    for key, shapes in products(module).items():
        path = ".".join(part for part in (name, "" if key == "product" else key) if part)
        path = path or "(model)"
        try:
            children[key] = QProduct(
                recipe, shapes, name=path, seed=seed, stream=next(streams), device=device
            )
        except (TypeError, ValueError) as error:
            raise located(error, f"layer {path!r}") from error
    return children


def _swap_(module: nn.Module, recipe: Recipe, children: dict[str, LayerState]) -> None:
    """Change a layer's class and give it its children, in place."""
    if is_norm(module):
        assert recipe.norm is not None
        convert_norm_(module, recipe.norm, children["state"])
        return
    plain = plain_type(module)
    assert plain is not None
    change_class_(module, quantized_class(module), plain)
    for key, child in children.items():
        child.train(module.training)
        module.add_module(key, child)
