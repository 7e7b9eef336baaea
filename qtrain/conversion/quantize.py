"""quantize: a model whose matrix products, and norms if asked, follow a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .. import checks
from ..copies import copied
from ..layer_state import LayerState
from ..recipe import Recipe
from ..schedule import Schedule
from .functional.discover import discover_
from .overrides import Asked, Norm, Override
from .plan import Plan
from .record import Conversion
from .set_recipe import follow_
from .stale_optimizer import watch_optimizers
from .undone import undone_on_error
from .untrained import watch_learned
from .watch import arguments, forget_watch


def quantize(
    model: nn.Module,
    bits: int | None = None,
    *,
    recipe: Recipe | str | Schedule = "int8",
    norm: Norm = None,
    overrides: Mapping[str, Override] | None = None,
    seed: int = 0,
    functional: bool = True,
    example_inputs: Any = None,
) -> nn.Module:
    """A copy of `model` whose products follow `recipe`; the original is untouched.

    bits        2..16 for a recipe that takes them; None: the recipe's own
    recipe      a Recipe or the name of one (see `qtrain.recipes.names()`), or a Schedule of them:
                its first now, and `set_recipe` for the others
    norm        the norms' deviation ("l2", "l1", "linf", "topk", "range", "none"), or a NormRecipe:
                of batch-norms, LayerNorm, RMSNorm, GroupNorm, InstanceNorm, subclasses that call
                one, and modules called norms that compute one; None: what the recipe says (int8:
                left alone)
    overrides   module-name patterns (fnmatch; a pattern that names a container covers all below;
                a layer of several products has these below it: "lstm.hh_l0", "self_attn.scores"
                of an nn.MultiheadAttention, "attn.functional.attention0.scores" of a call)
                -> None (leave), an int (bits), a Recipe or its name; the first match wins
    seed        of the rounding noise
    functional  whether products that a forward computes by functions (F.linear, matmul, @, einsum,
                F.scaled_dot_product_attention, F.conv2d ...) follow it too, each call a layer
                `<module>.functional.<kind><number>` that its first forward makes
    example_inputs   what the model is called with (a tensor, a tuple or a mapping by name): has
                these layers made at once, as a recipe that learns, an optimizer's parameter
                groups or DDP's buffers need them.  A forward on a copy (of no values, where it can
                run so) finds them

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
        converted, bits, recipe=recipe, norm=norm, overrides=overrides, seed=seed,
        functional=functional, example_inputs=example_inputs, _copied=True,
    )  # fmt: skip
    watch_optimizers(model, converted)
    return converted


def quantize_(
    model: nn.Module,
    bits: int | None = None,
    *,
    recipe: Recipe | str | Schedule = "int8",
    norm: Norm = None,
    overrides: Mapping[str, Override] | None = None,
    seed: int = 0,
    functional: bool = True,
    example_inputs: Any = None,
    _copied: bool = False,
) -> nn.Module:
    """`quantize` in place: parameters stay the objects they were, so an optimizer keeps working.

    Returns the model (a layer that is itself the root changes class as well).  Nothing is changed
    when an error is raised.
    """
    checks.module(model)
    if isinstance(bits, str):
        hint = f"a recipe's name is recipe={bits!r}"
        checks.refuse("bits", bits, "an integer from 2 to 16, or None", hint)
    if any(isinstance(module, LayerState) for module in model.modules()):
        raise ValueError(
            "model: it is quantized already; qtrain.set_recipe changes its recipe, or quantize the "
            "original model"
        )
    checks.integer("seed", seed)
    if not checks.boolean("functional", functional) and example_inputs is not None:
        checks.refuse("example_inputs", example_inputs, "None beside functional=False")
    level = 4 if _copied else 3  # to the caller of quantize, or of quantize_
    if isinstance(recipe, Schedule):
        if bits is not None:
            checks.refuse("bits", bits, "None beside a Schedule, whose recipes have their own")
        every = [Asked.of(own, norm, overrides) for own in recipe.recipes.values()]
    else:
        every = [Asked.of(recipe, norm, overrides, bits)]
    plans = [Plan(model, asked, seed, functional) for asked in every]
    widest = max(plans, key=lambda plan: len(plan.work))
    for plan in plans:
        widest.add(plan)
    with undone_on_error(model):
        widest.convert_(copied=_copied, level=level)
        if example_inputs is not None:
            args, kwargs = arguments(example_inputs)
            discover_(model, args, kwargs, forget_watch)
            conversion = Conversion.of(model)
            if (args or kwargs) and conversion and (lost := conversion.unmatched(model)):
                raise ValueError(lost)
            watch_learned(model)
        if isinstance(recipe, Schedule):
            follow_(model, every[0], schedule=str(recipe))
    return model
