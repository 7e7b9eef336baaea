"""set_recipe: another recipe for a model that was converted, in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..autograd.capture import capturing
from ..autograd.recomputation import in_backward
from ..copies import unwrapped
from ..layer_state import LayerState
from ..names import some
from ..norms import deviations
from ..norms.recipe import NormRecipe
from ..products.call import located
from ..products.operands import refuse_unscalable
from ..products.watched import Watched
from ..recipe import Recipe
from ..schedule import Schedule
from .functional.attach import attach_, follows_by_calls
from .functional.following import CHILD
from .functional.unmatched import check_names, unmatched
from .kinds import can_convert, follow_norm_, is_registered, norm_slots, operation_of
from .kinds import left as why_left
from .overrides import OFF, Asked, Chooser, Norm, Override, check_attention
from .record import Conversion
from .registered import class_of
from .swap import switch_fast_paths_
from .unfollowed import names_groups_alone, warn_of_groups, warn_of_sums
from .untrained import watch_learned


def set_recipe(
    model: nn.Module,
    recipe: Recipe | str,
    overrides: Mapping[str, Override] | None = None,
    *,
    norm: Norm = None,
) -> nn.Module:
    """Have a converted model follow `recipe` from its next forward on, in place; returns it.

    recipe      a Recipe or the name of one; of a Schedule `schedule.at(step, total)`
    overrides   as `quantize` takes them (None: in full precision); left out, those that were given
                before stay, {} takes them away
    norm        the norms' deviation or NormRecipe, likewise; "l2" is torch's own again where the
                recipe rounds nothing in norms

    It then computes as `quantize(original, recipe=recipe, ...)` does: under "fp32", without
    overrides and norm, as the original, bit for bit.  Layers that were not converted stay so.
    Parameters, the optimizer and the noise's counts are not touched.  An operand whose quantizer
    stays the same keeps its state, such as a running range; another quantizer's state starts anew
    (until a training step or `calibrate` has moved a range, evaluation takes each batch's own).
    The same recipe again does nothing.

    Call it between steps, after the backward pass.  A compiled model compiles anew; a captured CUDA
    graph replays what it captured: capture again.  A state_dict holds the states of the recipe in
    force: load it into a model that was given the same one.  Copies have recipes of their own.

    ValueError, with nothing changed, for a model that was not converted, where an override names
    layers that were not, where the recipe asks for norms that were not converted, and where one
    begins or ends to have deviation none, with which a norm's scale is not trained.
    """
    inner = unwrapped(model)
    before = Conversion.of(inner)
    if before is None:
        raise ValueError(
            "model: it was not converted by quantize or quantize_; convert it first, and give the "
            "whole model (overrides name its layers)"
            + Conversion.within(inner, "set_recipe({}, ...)")
        )
    if recipe is before.asked.given and overrides is None and norm is None:
        return model  # as at every step of a schedule but few
    if isinstance(recipe, Schedule):
        raise ValueError("recipe: got a Schedule; give its recipe of a step, .at(step, total)")
    asked = Asked.of(
        recipe,
        before.asked.norm if norm is None else norm,
        before.asked.overrides if overrides is None else overrides,
    )
    if asked != before.asked:
        if in_backward() or capturing():
            raise ValueError(
                "set_recipe: within a backward pass, or a captured CUDA graph; call it between "
                "steps, and capture the graph after it"
            )
        try:
            follow_(inner, asked)
        except ValueError as error:
            if overrides is None and "overrides" in str(error):
                raise ValueError(
                    f"{error}; overrides that were given before hold on: overrides={{}} takes them "
                    f"away, others replace them"
                ) from error
            raise
    return model


def follow_(model: nn.Module, asked: Asked, *, schedule: str | None = None) -> None:
    """Have a converted model follow what is asked, in place; `schedule` goes into its record."""
    before = Conversion.of(model)
    assert before is not None
    choose = Chooser(asked)
    layers, chosen, left = [], {}, {}
    norms_left: dict[str, str] = {}
    registered: dict[str, Recipe | None] = {}
    off: dict[str, str] = {}  # of those
    unasked: dict[str, list[str]] = {"norm": [], "lookup": []}
    for name, module in model.named_modules():
        shown = name or "(model)"
        states = {k: child for k, child in module.named_children() if isinstance(child, LayerState)}
        if states:
            own = chosen[name] = choose(name)
            of = choose.of_children(name, own, states)
            layers.append(_Layer(name, module, states, own or OFF, of))
        elif before.functional is not None and is_registered(module):
            own = registered[shown] = chosen[name] = choose(name)
            if own is None:
                off[shown] = f"{class_of(module).__name__}: left by an override"
        elif shown in before.left:
            own = chosen[name] = choose(name)
            if own is None or before.functional is None or not follows_by_calls(module):
                left[name] = f"it was not converted: {before.left[shown]}"
            if own is not None and own.norm is not None and not own.norm.is_off:
                if shown not in before.on_purpose and can_convert(module):
                    unasked["norm"].append(name)
                elif shown in before.norms_left:
                    norms_left[shown] = before.left[shown]
            elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
                if shown not in before.on_purpose and why_left(module, own) is None:
                    unasked["lookup"].append(name)
    choose.check_all_used(later="" if before.functional is None else f".{CHILD}.")
    if before.functional is not None and asked.overrides != before.asked.overrides:
        check_names(model, choose)
        if before.functional.are_known and (lost := unmatched(model, before.functional, choose)):
            raise ValueError(lost)
    check_attention(model, chosen)
    overridden: dict[str, str] = {}
    for layer in layers:
        overridden |= choose.overridden(layer.name, layer.recipe, layer.of)
    for shown, own in registered.items():
        overridden |= choose.overridden(shown, own, {}) if own else {}
    choose.check_all_honoured(left)
    for part, names in unasked.items():
        if names:
            raise ValueError(
                f"{part}: {asked.base.name} has {part} {getattr(asked.base, part)}, and "
                f"{some(names, 6)} were not converted; quantize the original model with such a "
                f"{part}, or with a Schedule of all its recipes, or take "
                f"dataclasses.replace(recipe, {part}=None)"
            )
    fresh = [layer.built() for layer in layers]  # everything first: an error must change nothing
    for layer, built in zip(layers, fresh, strict=True):
        layer.follow_(built)
    switch_fast_paths_(model)
    if before.functional is not None:
        before.functional.choose, before.functional.overridden = choose, overridden
        attach_(model, before.functional)
    watch_learned(model)
    kept = {name: why for name, why in before.left.items() if name not in registered}
    replace(
        before, left=kept | off, on_purpose=before.on_purpose - {*registered} | {*off},
        asked=asked, overridden=overridden, norms_left=norms_left,
        schedule=before.schedule if schedule is None else schedule,
    ).attach(model)  # fmt: skip
    warn_of_groups(
        [layer.name or "(model)" for layer in layers if names_groups_alone(layer.states.values())],
        4,
    )
    warn_of_sums((recipe for layer in layers for recipe in layer.of.values()), 4)


@dataclass
class _Layer:
    """A converted layer, the states it holds, the recipe it is to follow, and that of each."""

    name: str
    module: nn.Module
    states: dict[str, LayerState]
    recipe: Recipe
    of: dict[str, Recipe]

    @property
    def is_norm(self) -> bool:
        return "state" in self.states

    @property
    def _norm(self) -> NormRecipe:
        return self.recipe.norm or NormRecipe()

    def built(self) -> list[LayerState]:
        """The states of its layer under the recipe; ValueError where it cannot be followed."""
        if self.is_norm:
            self._check_norm()
        return [self._built(state, self.of[key]) for key, state in self.states.items()]

    def _built(self, state: LayerState, recipe: Recipe) -> LayerState:
        own: dict[str, Any] = {"name": state.name, "seed": 0, "stream": 0}
        own["device"] = state.noise_key.device
        try:
            if isinstance(state, Watched):
                operation = operation_of(self.module)
                if operation is not None:
                    refuse_unscalable(operation, recipe, state.shapes)
                return type(state)(recipe, state.shapes, **own)
            return LayerState(norm_slots(self.module, self._norm), **own)
        except (TypeError, ValueError) as error:
            raise located(error, f"layer {state.name!r}") from error

    def _check_norm(self) -> None:
        if not can_convert(self.module):
            raise ValueError(
                f"norm: layer {self.name or '(model)'!r} is a {type(self.module).__name__} now, "
                f"which was made of a converted norm; undo that, or quantize the original model"
            )
        none = deviations.none()
        now: Any = self.module.recipe
        if (now.deviation == none) != (self._norm.deviation == none):
            raise ValueError(
                f"norm: layer {self.name or '(model)'!r} has deviation {now.deviation}, and is to "
                f"have {self._norm.deviation}; with none its scale is not trained, which was "
                f"decided when it was converted: quantize the original model with the other"
            )

    def follow_(self, states: list[LayerState]) -> None:
        """Follow the recipe, with what `built` gave."""
        for state, other in zip(self.states.values(), states, strict=True):
            state.adopt_(other)
        if self.is_norm:
            follow_norm_(self.module, self._norm)
