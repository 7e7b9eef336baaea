"""recommend: which layers to widen, at little cost, so that the gradient keeps its direction."""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from textwrap import fill
from typing import Any

from torch import nn

from .. import checks
from ..conversion.watch import arguments, twin
from ..hardware.report import CostReport
from ..inspection.step import Loss
from ..reports.table import WIDTH
from .paired import Batch, batches_of, cosine_and_error, moments, paired_steps
from .parts import owners, rounded_parts
from .sensitivity_report import SensitivityReport
from .widening import Layers, Trial, cosine_of, error_of, greedy, tried


@dataclass(frozen=True)
class Recommendation:
    """Layers to widen.  `quantize(net, ..., overrides=found.overrides)`, `print(found)`.

    overrides    name of a layer (or attention) -> None: full precision
    layers       how many there are
    goal         the cosine that was asked for;  before: with nothing widened
    predicted    the cosine by the sum of the errors of what stays quantized
    measured     on the model and batches that were given, or None
    cost_share   the cost of what is widened as a part of that of all layers;  unit: what of
    trials       what was measured, in order
    """

    overrides: Mapping[str, None]
    layers: int
    goal: float
    before: float
    predicted: float
    measured: float | None
    cost_share: float
    unit: str
    trials: tuple[Trial, ...] = ()

    def __str__(self) -> str:
        if not self.overrides:
            return f"nothing to widen: the gradient's cosine is {self.before:.5f} already"
        names = ", ".join(self.overrides)
        found = "not measured" if self.measured is None else f"{self.measured:.5f} measured"
        share = f", {100 * self.cost_share:.1f} % of the {self.unit}"
        head = (
            f"full precision for {len(self.overrides)} of {self.layers} layers"
            f"{'' if self.unit == 'layers' else share}: {names}"
        )
        lines = [
            fill(head, WIDTH, subsequent_indent="  ", break_on_hyphens=False),
            f"gradient's cosine: {self.before:.5f} without, {self.predicted:.5f} predicted, "
            f"{found}",
        ]
        if len(self.trials) > 1:
            tried = ", ".join(f"{len(one.widened)}: {one.measured:.5f}" for one in self.trials)
            lines.append(fill(f"tried, cosine by how many layers are wider: {tried}", WIDTH))
        return "\n".join(lines)


def recommend(
    report: SensitivityReport,
    cosine: float = 0.99,
    cost: CostReport | Mapping[str, float] | None = None,
    *,
    model: nn.Module | None = None,
    inputs: Any = None,
    targets: Any = None,
    loss: Loss | None = None,
    more: Iterable[Batch] = (),
) -> Recommendation:
    """Layers to put in full precision, at little cost, for a gradient within a cosine of that of
    full precision, from `sensitivity` of a converted model.

    cosine   to reach, between 0 and 1
    cost     what widening a layer costs: its multiply-adds, from `cost(model, inputs)`, or numbers
             by name (energies, seconds); None: all the same
    model    the converted model that `report` is of; then the result is measured, on the batches of
             `inputs`, `targets`, `loss` and `more`, as `sensitivity` takes them, and more or less
             is widened until it just reaches the goal

    Errors nearly at right angles to one another and to the gradient add up in 1/cos^2 - 1 (an error
    e of a gradient g has cos = 1/sqrt(1 + |e|^2 / |g|^2)): predicted is the sum of `alone_error` of
    what stays quantized.  The choice is greedy, by error per cost: layers stay quantized one after
    another, that of least `alone_error` per cost first, wherever the sum still allows it; the
    others are widened.  Where all cost the same no set is smaller; else the cheapest may cost less,
    at most by what the first of those others costs.

    Errors that are not small compound, or hide one another.  Measured, less is allowed to stay
    until the goal is reached, then as much as still reaches it, within 5 %: each time the greedy
    set for it, 12 of them at most once one does.  The cheapest that was measured to do is returned.

    Layers go to full precision (None), which is what was measured.  For another width, give
    `dict.fromkeys(found.overrides, 16)` to `quantize` and look at `sensitivity(...).cosine`.

    Raises ValueError where only full precision in every layer reaches the cosine, where the report
    holds no cosine that is a number, or a cost is missing.
    """
    goal = checks.number("cosine", cosine, low=0, high=1, positive=True)
    errors = _errors(report)
    costs, unit = _costs(report, cost)
    batches = batches_of("recommend", inputs, targets, more)
    measure = None
    if model is not None:
        checks.batch("inputs", inputs)
        args, kwargs = arguments(batches[0][0])
        measure = _measurement(twin(model, *args, **kwargs), batches, loss, errors)
    elif inputs is not None or targets is not None or loss is not None or len(batches) > 1:
        raise ValueError("recommend: got a batch, but no model= to measure the result on")

    def left(widened: Layers) -> float:
        return sum(error for name, error in errors.items() if name not in widened)

    def spent(widened: Layers) -> float:
        return sum(costs[name] for name in widened) / sum(costs.values())

    widened: Layers = ()
    measured: float | None = report.cosine
    trials: list[Trial] = []
    if not report.cosine >= goal:
        allowed = error_of(goal)
        if left(()) <= allowed:  # nothing was predicted to be needed, but it is
            allowed *= left(()) / report.error
        if measure is None:
            widened, measured = greedy(errors, costs, allowed), None
        else:
            trials = tried(errors, costs, allowed, measure, goal)
            reached = [trial for trial in trials if trial.measured >= goal]
            if reached:
                widened, _, measured = min(reached, key=lambda trial: spent(trial.widened))
        if len(widened) in (0, len(errors)):
            raise ValueError(
                f"cosine: got {goal!r}, which only full precision in every layer reaches; ask for "
                f"less, or give the recipe more bits"
            )
    return Recommendation(
        overrides={glob.escape(name): None for name in widened},
        layers=len(errors),
        goal=goal,
        before=report.cosine,
        predicted=cosine_of(left(widened)),
        measured=measured,
        cost_share=spent(widened),
        unit=unit,
        trials=tuple(trials),
    )


def _errors(report: SensitivityReport) -> dict[str, float]:
    """The errors of the parts of each layer, or attention, quantized alone; inf for a NaN."""
    if not isinstance(report, SensitivityReport):
        raise TypeError(f"report: got {type(report).__name__}, need what sensitivity() returns")
    if all(math.isnan(row.alone_cosine) for row in report.rows):
        raise ValueError(
            "report: every cosine in it is NaN: the gradient in full precision is 0 or not finite, "
            "or is not with any one layer quantized; give sensitivity another batch or loss"
        )
    found: dict[str, float] = {}
    for row in report.rows:
        error = math.inf if math.isnan(row.alone_error) else row.alone_error
        found[row.module] = found.get(row.module, 0.0) + error
    return found


def _costs(
    report: SensitivityReport, cost: CostReport | Mapping[str, float] | None
) -> tuple[dict[str, float], str]:
    """The cost of each layer, or attention, of the report, and what it is of."""
    modules = {row.layer: row.module for row in report.rows}
    names = dict.fromkeys(modules.values())
    if cost is None:
        return dict.fromkeys(names, 1.0), "layers"
    if not isinstance(cost, CostReport | Mapping):
        raise TypeError(
            f"cost: got {type(cost).__name__}, need a CostReport, or numbers by layer's name"
        )
    found: dict[str, float] = {}
    if isinstance(cost, CostReport):
        for row in cost.rows:
            if row.layer in modules:
                name = modules[row.layer]
                found[name] = found.get(name, 0.0) + row.macs
    else:
        found = {name: checks.number(f"cost of {name!r}", cost[name], low=0) for name in cost}
    missing, unknown = [n for n in names if n not in found], [n for n in found if n not in names]
    if missing:
        raise ValueError(f"cost: got none of {', '.join(missing)}, which the report has")
    if unknown:
        raise ValueError(f"cost: got {', '.join(unknown)}; the report has {', '.join(names)}")
    if not sum(found.values()):
        raise ValueError("cost: every layer's is 0; give at least one that is not")
    return found, "multiply-adds" if isinstance(cost, CostReport) else "cost"


def _measurement(
    model: nn.Module, batches: list[Batch], loss: Loss | None, expected: Iterable[str]
) -> Callable[[tuple[str, ...]], float]:
    """A function of the layers in full precision -> cosine of the gradient, a mean over batches."""
    parts, owner = rounded_parts(model), owners(model)
    if set(expected) != {owner[layer] for layer, _ in parts}:
        raise ValueError("model: its quantized layers are not those of the report")
    steps = [
        (step, step.without(parts).gradient)
        for step in paired_steps("recommend", model, batches, loss)
    ]

    def measure(widened: tuple[str, ...]) -> float:
        off = [part for part in parts if owner[part[0]] in widened]
        return fmean(
            cosine_and_error(moments(step.without(off).gradient, full).values())[0]
            for step, full in steps
        )

    return measure
