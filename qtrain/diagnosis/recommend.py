"""recommend: what to widen, at little cost, so that the gradient keeps its direction."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Mapping
from statistics import fmean
from typing import Any

from torch import nn

from .. import checks
from ..conversion.overrides import Override
from ..conversion.watch import arguments
from ..hardware.report import CostReport
from ..inspection.step import Loss
from ..recipe import Recipe
from ..recipe_file import find
from .paired import Batch, batches_of, cosine_and_error, moments, paired_steps
from .parts import BY, PRODUCTS
from .recommendation import Recommendation
from .sensitivity_report import SensitivityReport
from .unit_costs import costs_of, errors_of
from .widened import Widened
from .widening import Layers, cheapest, cosine_of, error_of, greedy, tried


def recommend(
    report: SensitivityReport,
    cosine: float = 0.99,
    cost: CostReport | Mapping[str, float] | None = None,
    *,
    by: str = "layer",
    to: Override = None,
    each: bool = False,
    model: nn.Module | None = None,
    inputs: Any = None,
    targets: Any = None,
    loss: Loss | None = None,
    more: Iterable[Batch] = (),
) -> Recommendation:
    """What to widen, at little cost, for a gradient within a cosine of that of full precision, from
    `sensitivity` of a converted model.

    cosine   to reach, between 0 and 1
    cost     what widening a part costs: the multiply-adds of its products, from `cost(model,
             inputs)`, or numbers by name (energies, seconds); None: of layers all the same, of
             products and roles the bits that an element of each operand gains
    by       what is widened: whole layers ("layer"), or a "product" (forward, grad_input,
             grad_weight) or "role" (an operand of one) in all layers alike; the report is by the
             same, or by what is finer
    to       as the value of an override: what a part becomes, full precision (None), its own
             quantizer at so many bits, or that of a recipe (or of the one of that name).  Parts
             that have as many bits already stay.  Other than None it needs a model, and so does
             `by` other than "layer"
    each     whether products and roles are widened in single layers, those that need it, not in all
    model    the converted model that `report` is of; then the result is measured, on the batches of
             `inputs`, `targets`, `loss` and `more`, as `sensitivity` takes them, on copies that
             follow the recommended recipe

    Errors nearly at right angles to one another and to the gradient add up in 1/cos^2 - 1 (an error
    e of a gradient g has cos = 1/sqrt(1 + |e|^2 / |g|^2)): predicted is the sum of `alone_error` of
    what is not widened, as if what is had none.  The choice is greedy, by error per cost: parts
    stay one after another, that of least `alone_error` per cost first, wherever the sum still
    allows it; the others are widened.  Where all cost the same no set is smaller; else the cheapest
    may cost less, at most by what the first of those others costs.

    Errors that are not small compound, or hide one another.  Measured, less is allowed to stay
    until the goal is reached, then as much as still reaches it, within 5 %: each time the greedy
    set for it, 12 of them at most once one does.  The cheapest that was measured to do is returned.
    Products and roles in all layers alike are few: every set of them is measured, the cheapest
    first, until one does.

    Raises ValueError where only full precision in every layer, or nothing with `to`, reaches the
    cosine, where the report holds no cosine that is a number, or is by something coarser, or a cost
    is missing.
    """
    goal = checks.number("cosine", cosine, low=0, high=1, positive=True)
    checks.choice("by", by, BY)
    checks.boolean("each", each)
    if isinstance(to, str):
        to = find(to)
    elif to is not None and not isinstance(to, Recipe):
        checks.integer("to", to, low=2, high=16)
    if each and by == "layer":
        raise ValueError("each: got True by='layer', of which each is one; by='product' or 'role'")

    def unit(layer: str, part: str, module: str) -> str:
        """Of a row of the report, or a part of the model."""
        own = PRODUCTS.get(part, part) if by == "product" else part
        return module if by == "layer" else f"{layer} {own}" if each else own

    errors = errors_of(report, unit, by)
    batches = batches_of("recommend", inputs, targets, more)
    widened_model = None
    if model is not None:
        checks.batch("inputs", inputs)
        args, kwargs = arguments(batches[0][0])
        widened_model = Widened(model, args, kwargs, unit, by, to, each)
        if widened_model.units.keys() != errors.keys():
            raise ValueError("model: its quantized layers are not those of the report")
    elif inputs is not None or targets is not None or loss is not None or len(batches) > 1:
        raise ValueError("recommend: got a batch, but no model= to measure the result on")
    elif by != "layer" or to is not None:
        raise ValueError("recommend: by and to need model=, inputs= and targets= (or loss=) too")
    added = dict.fromkeys(errors, 1.0) if widened_model is None else widened_model.added
    free = {name: error for name, error in errors.items() if added[name]}
    if not free:
        raise ValueError(f"to: got {_text(to)}, which has more bits than no part of the model")
    costs, unit_name, whole = costs_of(report, unit, cost, added, widened_model, by)
    measure = None if widened_model is None else _measurement(widened_model, batches, loss)

    def left(widened: Layers) -> float:
        return sum(error for name, error in errors.items() if name not in widened)

    def spent(widened: Layers) -> float:
        return sum(costs[name] for name in widened) / whole

    before = report.cosine if measure is None else measure(())
    widened: Layers = ()
    measured: float | None = before
    trials = []
    if not before >= goal:
        allowed = error_of(goal)
        if left(()) <= allowed:  # nothing was predicted to be needed, but it is
            allowed *= left(()) / error_of(before)
        if measure is None:
            widened, measured = greedy(errors, costs, allowed), None
        elif by == "layer" or each:
            trials = tried(free, costs, allowed, measure, goal)
        else:
            trials = cheapest(free, costs, measure, goal)
        trials = [one._replace(predicted=cosine_of(left(one.widened))) for one in trials]
        reached = [trial for trial in trials if trial.measured >= goal]
        if reached:
            widened, _, measured = min(reached, key=lambda trial: spent(trial.widened))
        if to is None and len(widened) in (0, len(errors)):
            raise ValueError(
                f"cosine: got {goal!r}, which only full precision in every layer reaches; ask for "
                f"less, or give the recipe more bits"
            )
        if not widened:
            most = max(trials, key=lambda trial: trial.measured)
            raise ValueError(
                f"cosine: got {goal!r}, but with {_text(to)} by {by} it is {most.measured:.5f} at "
                f"most ({before:.5f} without); ask for less, or give to= more bits"
            )
    recipe, overrides = (
        (None, {glob.escape(name): None for name in widened})
        if widened_model is None
        else widened_model.asked_with(widened)
    )
    return Recommendation(
        overrides=overrides,
        widened=widened,
        layers=len(errors),
        goal=goal,
        before=before,
        predicted=cosine_of(left(widened)),
        measured=measured,
        cost_share=spent(widened),
        unit=unit_name,
        recipe=recipe,
        by=by,
        each=each,
        to=_text(to),
        trials=tuple(trials),
    )


def _text(to: Override) -> str:
    if to is None:
        return "full precision"
    return f"{to} bits" if isinstance(to, int) else f"the quantizers of {getattr(to, 'name', to)}"


def _measurement(
    widened: Widened, batches: list[Batch], loss: Loss | None
) -> Callable[[Layers], float]:
    """A function of what is widened -> cosine of the gradient, a mean over batches."""
    steps = [
        (step, step.without(widened.parts).gradient)
        for step in paired_steps("recommend", widened.model, batches, loss)
    ]

    def measure(units: Layers) -> float:
        asked = widened.asked_with(units)
        return fmean(
            cosine_and_error(moments(step.under(*asked).gradient, full).values())[0]
            for step, full in steps
        )

    return measure
