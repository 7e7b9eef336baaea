"""How far steps turn each layer's weights, over a run: the effective step sizes eta / ||w||^2."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from .. import checks
from ..reports.plots import Line, Panel, plot
from .channels import chosen
from .decay import CorrectedSteps, effective_rates

if TYPE_CHECKING:
    from ..reports.plots import Axes, Figure, Place


class RateRow(NamedTuple):
    """The channels' eta / ||w||^2 of one weight at one step: their quartiles and median."""

    step: int
    weight: str
    low: float
    median: float
    high: float


class EffectiveRates:
    """Records eta / ||w||^2 (Hoffer et al. 2018, section 3) over a run: `rates.record(step)`.

    model, optimizer   as `effective_rates` takes them
    correction         what multiplies the optimizer's steps; the rates are multiplied likewise
    only, skip         patterns of the layers that are recorded: see `channel_norms`
    rows               a RateRow for every recorded step and weight: three numbers, however many
                       channels it has; of two that a quartile lies between, the lower

    A channel of norm 0 has the rate inf.  ValueError where the optimizer trains none of the
    weights.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        correction: CorrectedSteps | None = None,
        only: Iterable[str] = ("*",),
        skip: Iterable[str] = (),
    ) -> None:
        if not isinstance(correction, CorrectedSteps | None):
            checks.refuse("correction", correction, "a CorrectedSteps or None")
        self._model, self._optimizer, self._correction = model, optimizer, correction
        self._patterns = chosen(only, skip)
        self.rows: list[RateRow] = []
        if not effective_rates(model, optimizer, **self._patterns):
            raise ValueError(
                "optimizer: it trains none of the model's weights; build it from this model's "
                "parameters"
            )

    def record(self, step: int) -> None:
        """Append the rates of now; `step`, or an epoch: above the last one that was recorded."""
        checks.integer("step", step, low=0)
        if self.rows and step <= self.rows[-1].step:
            raise ValueError(f"step: got {step}, need more than the last, {self.rows[-1].step}")
        ratios = {} if self._correction is None else self._correction.ratios()
        for name, rates in effective_rates(self._model, self._optimizer, **self._patterns).items():
            rates = rates * ratios[name] if name in ratios else rates
            # none interpolated: between a finite rate and an infinite one there is no number
            ordered = rates.sort().values.tolist()
            low, median, high = (ordered[(len(ordered) - 1) * k // 4] for k in (1, 2, 3))
            self.rows.append(RateRow(step, name, low, median, high))

    def state_dict(self) -> dict[str, Any]:
        """The rows as plain data, for a checkpoint."""
        return {"rows": [list(row) for row in self.rows]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave; ValueError, with nothing restored, for anything else."""
        rows = state.get("rows") if isinstance(state, Mapping) else None
        if not isinstance(rows, list) or not all(map(_is_row, rows)):
            need = "what state_dict() gave, {'rows': [[step, weight, low, median, high], ...]}"
            raise ValueError(f"state: got {checks.shown(state)}, need {need}")
        self.rows = [RateRow(*row) for row in rows]

    def plot(self, path: Place = None, *, ax: Axes | None = None) -> Figure:
        """Median and quartiles of every weight against the step; to a PNG or SVG where a path is
        given, into `ax` where one is.

        ValueError for another ending, and where nothing was recorded.
        """
        if not self.rows:
            raise ValueError("rates: nothing to plot; call record(step) first")
        lines = []
        for name in dict.fromkeys(row.weight for row in self.rows):
            # a channel of norm 0 has an infinite rate, which no axis shows
            own = [row for row in self.rows if row.weight == name and math.isfinite(row.high)]
            band = Line(
                label="quartiles", kind=name,
                points=[(row.step, row.low) for row in own], top=[row.high for row in own],
            )  # fmt: skip
            lines += [band, Line(label=name, points=[(r.step, r.median) for r in own], marks=True)]
        title = "median and quartiles of each weight's channels"
        panel = Panel(title=title, unit="learning rate / ||w||²", x="step", lines=lines, log="y")
        return plot([panel], path, ax=ax)


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, list | tuple)
        and len(row) == 5
        and type(row[0]) is int
        and isinstance(row[1], str)
        and all(isinstance(value, float) for value in row[2:])
    )
