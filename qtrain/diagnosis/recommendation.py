"""Recommendation: what to widen, and what was measured with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import fill

from ..conversion.overrides import Override
from ..recipe import Recipe
from ..reports.numbers import short
from ..reports.table import WIDTH
from .widening import Trial, error_of


@dataclass(frozen=True)
class Recommendation:
    """What to widen.  `print(found)`, `set_recipe(model, found.recipe, found.overrides)`,
    `quantize(net, recipe=found.recipe, overrides=found.overrides)`.

    overrides    name of a layer (or attention), or a pattern that the model has -> what it follows;
                 without a model those of the layers alone that were found
    widened      the parts: layers; products or roles; "layer role" of single ones
    layers       of how many such parts
    goal         the cosine that was asked for;  before: with nothing widened, measured where
                 `measured` is
    predicted    the cosine by the sum of the errors of what is not widened
    measured     on the model and batches that were given, the recommended recipe in force, or None
    cost_share   the cost of what is widened as a part of that of all;  unit: what of
    recipe       that of all other layers; None without a model: the one they have
    to           what the parts become, in words
    trials       what was measured, in order
    """

    overrides: Mapping[str, Override]
    widened: tuple[str, ...]
    layers: int
    goal: float
    before: float
    predicted: float
    measured: float | None
    cost_share: float
    unit: str
    recipe: Recipe | None
    by: str
    each: bool
    to: str
    trials: tuple[Trial, ...] = ()

    def __str__(self) -> str:
        if not self.widened:
            return f"nothing to widen: the gradient's cosine is {self.before:.5f} already"
        share = f"{100 * self.cost_share:.1f} % of the {self.unit}"
        if self.unit == "bits":
            share = f"{100 * self.cost_share:.0f} % more bits of operands"
        if self._counts:
            of = f"{self.to} for {len(self.widened)} of {self.layers} {self._kind}s"
            named = ", ".join(self.widened)
            head = f"{of}{'' if self.unit == 'layers' else f', {share}'}: {named}"
        else:
            names = _joined(self.widened)
            head = f"give {names} {self.to} in all layers ({share}), and leave the rest"
        lines = [fill(head, WIDTH, subsequent_indent="  ", break_on_hyphens=False), self._cosines()]
        if len(self.trials) > 1:
            tried = ", ".join(f"{self._named(one)}: {one.measured:.5f}" for one in self.trials)
            by = f"how many {self._kind}s are wider" if self._counts else "what is wider"
            lines.append(fill(f"tried, cosine by {by}: {tried}", WIDTH))
        return "\n".join(lines)

    @property
    def _kind(self) -> str:
        return "layer" if self.by == "layer" else f"single {self.by}"

    @property
    def _counts(self) -> bool:
        return self.each or self.by == "layer"

    def _named(self, trial: Trial) -> str:
        return str(len(trial.widened)) if self._counts else " + ".join(trial.widened)

    def _cosines(self) -> str:
        predicted = f"{self.predicted:.5f} predicted"
        if self.measured is None:
            return f"gradient's cosine: {self.before:.5f} without, {predicted}, not measured"
        noise = " -> ".join(_noise(cosine) for cosine in (self.before, self.measured))
        return (
            f"gradient's cosine: {self.before:.5f} without, {predicted}, {self.measured:.5f} "
            f"measured\n(its noise, in units of its own power: {noise})"
        )


def _noise(cosine: float) -> str:
    return short(error_of(cosine)) if cosine > 0 else "without bound"


def _joined(names: tuple[str, ...]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
