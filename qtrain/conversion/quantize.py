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
from .functional.attach import attach_, may_call
from .functional.discover import discover_
from .functional.following import CHILD, Following
from .kinds import (
    children,
    is_any_norm,
    is_norm,
    is_norm_by_name,
    is_registered,
    left,
    plain_type,
    products,
    targets,
)
from .overrides import Asked, Chooser, Norm, Override, check_attention
from .record import Conversion
from .set_recipe import follow_
from .stale_optimizer import watch_optimizers
from .swap import built, fuse_sequentials_, swap_
from .undone import undone_on_error
from .unfollowed import (
    names_groups_alone,
    refuse_uncovered,
    warn_of_groups,
    warn_of_norms,
    warn_of_sums,
)
from .untrained import watch_learned
from .watch import arguments, forget_watch, watch_first_forward


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
                a layer of several products has these below it: "lstm.hh_l0", "attention.scores")
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
    plans = [_Plan(model, asked, seed, functional) for asked in every]
    widest = max(plans, key=lambda plan: len(plan.work))
    with undone_on_error(model):
        widest.convert_(copied=_copied, level=level)
        if example_inputs is not None:
            args, kwargs = arguments(example_inputs)
            discover_(model, args, kwargs, forget_watch)
            watch_learned(model)
        if isinstance(recipe, Schedule):
            follow_(model, every[0], schedule=str(recipe))
    return model


class _Plan:
    """What quantize_ is going to do to a model, all of it built, none of it done.

    work    the layers to convert, each with its recipe
    """

    def __init__(self, model: nn.Module, asked: Asked, seed: int, functional: bool) -> None:
        self._model, self._asked = model, asked
        choose = Chooser(asked)
        self._functional = Following(choose, seed) if functional else None
        plan = [(name, module, choose(name)) for name, module in targets(model)]
        each = [choose.of_children(name, own, children(module)) for name, module, own in plan]
        choose.check_all_used(later=f".{CHILD}." if functional else "")
        check_attention(model, {name: own for name, _, own in plan})
        self.work: list[tuple[str, nn.Module, dict[str, Recipe]]] = []
        self._left: dict[str, str] = {}
        self._on_purpose: set[str] = set()
        self._overridden: dict[str, str] = {}
        self._norms_left: dict[str, str] = {}
        within: dict[str, str] = {}  # products of layers that are left
        for (name, module, own), recipes in zip(plan, each, strict=True):
            shown, reason = name or "(model)", left(module, own)
            if functional and own and is_registered(module):
                self._overridden |= choose.overridden(name, own, {})
                continue  # its calls follow
            if functional and own and reason and may_call(module) and not is_norm_by_name(module):
                reason = reason.replace("kept in full precision", "left to its forward's calls")
            if own is None or reason is not None:
                self._left[shown] = f"{type(module).__name__}: {reason}"
                within |= {f"{name}.{key}".lstrip("."): f"{shown}: {reason}" for key in recipes}
                if own is None:
                    self._on_purpose.add(shown)
                elif own.norm is not None and not own.norm.is_off and is_any_norm(module):
                    self._norms_left[shown] = self._left[shown]
                continue
            self.work.append((name, module, recipes))
            self._overridden |= choose.overridden(name, own, recipes)
        choose.check_all_honoured({**within, **self._left})
        self._norms = sum(is_norm(module) for _, module, _ in self.work)
        if asked.norm is not None and not self._norms:
            refuse_uncovered(model, asked.norm, plan, self._norms_left)
        calls = functional and any(
            may_call(module) and choose.recipe(name) is not None
            for name, module in model.named_modules()
        )
        if not self.work and not calls:
            raise ValueError(
                f"model: {type(model).__name__} has nothing to convert: no linear, convolution, "
                f"recurrent, attention or (with norm=) norm layer outside the overrides"
                + "".join(f"\n  left {name}: {reason}" for name, reason in self._left.items())
            )
        self._built = built(model, self.work, seed)

    def convert_(self, *, copied: bool, level: int) -> None:
        """Do it."""
        model, work = self._model, self.work
        ungrouped = [  # layers with a weight that has a scale per group, and one group
            name or "(model)"
            for name, module, recipes in work
            if not is_norm(module)
            and any(names_groups_alone(recipes[k], s[1]) for k, s in products(module).items())
        ]
        kinds = {n or "(model)": (plain_type(m) or type(m)).__name__ for n, m, _ in work}
        swap_(model, work, self._built)
        record = Conversion(
            asked=self._asked, copied=copied, converted=kinds, left=self._left,
            on_purpose=self._on_purpose, overridden=self._overridden, norms_left=self._norms_left,
            functional=self._functional,
        )  # fmt: skip
        if self._functional is not None:
            self._functional.converted = record.converted
            attach_(model, self._functional)
        fuse_sequentials_(model)
        record.attach(model)
        watch_first_forward(model)
        watch_learned(model)
        if self._functional is not None:  # a state_dict makes layers of calls, which may learn
            model.register_load_state_dict_post_hook(_loaded)
        warn_of_norms(model, self._norms, self._norms_left, level + 1)
        warn_of_groups(ungrouped, level + 1)
        warn_of_sums((own for _, _, recipes in work for own in recipes.values()), level + 1)


def _loaded(model: nn.Module, keys: object) -> None:
    watch_learned(model)
