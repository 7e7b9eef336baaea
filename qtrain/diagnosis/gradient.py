"""The gradient as a whole: how far rounding turns it, measured, or bounded by a record."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median

from torch import nn

from ..conversion.watch import arguments, twin
from ..inspection.row import RESULTS
from ..inspection.rows import MonitorRow
from ..inspection.step import Loss
from ..reports.numbers import short
from .paired import Batch, cosine_and_error, moments, paired_steps
from .parts import rounded_parts
from .verdict import Finding, Verdict
from .widening import cosine_of, error_of

ASTRAY = "gradient astray"
#: tan^2 from where on the whole is: as much noise as gradient; of it, what the median layer adds
BOUND, EACH = 1.0, 0.05
#: measured tan^2 from where on what a record bounds stays: less than sqrt(3) times its noise
MEASURED = 1 / 3

_REMEDY = (
    "recommend(sensitivity(model, ..., by='role'), by='role', to=8, model=model, ...) names the "
    "operands to widen in all layers, measured (qtrain recommend CHECKPOINT --by role --to 8)"
)
_FINDING = Finding(
    layer="(model)", role="gradient", symptom=ASTRAY, value=0.0, threshold=MEASURED, seen=1,
    records=1, first=0, last=0, cause="", remedy=_REMEDY, source="", severity=0.0,
)  # fmt: skip


def in_words(cosine: float) -> str:
    """What a cosine means for the step."""
    if cosine <= 0:
        return f"its cosine with that of full precision is {cosine:.2f}: nothing of it is left"
    return (
        f"its cosine with that of full precision is {cosine:.2f}: the noise has "
        f"{short(error_of(cosine))} times the gradient's power, and "
        f"{100 * math.sqrt(1 - min(cosine, 1) ** 2):.0f} % of the step's length goes elsewhere"
    )


def cosine_on(model: nn.Module, batches: Sequence[Batch], loss: Loss | None) -> float:
    """Of the gradient of all parameters with that of full precision, a mean over batches: as
    `sensitivity` measures it."""
    args, kwargs = arguments(batches[0][0])
    model = twin(model, *args, **kwargs)
    parts = rounded_parts(model)
    return fmean(
        cosine_and_error(moments(one.quantized.gradient, one.without(parts).gradient).values())[0]
        for one in paired_steps("diagnose", model, batches, loss)
    )


def with_measured(verdict: Verdict, cosine: float, batches: int, step: int) -> Verdict:
    """The verdict, with what was measured in place of what the record, up to `step`, bounds: errors
    of the forward alone, which move no layer's gradient far, count from a larger sum on."""
    others = tuple(f for f in verdict.findings if f.symptom != ASTRAY)
    error = error_of(cosine) if cosine > 0 else math.inf
    limit = BOUND if len(others) == len(verdict.findings) else MEASURED
    astray = error > limit and not math.isnan(cosine)
    found = replace(
        _FINDING, value=error, threshold=limit, seen=batches, records=batches, first=step,
        last=step, cause=in_words(cosine),
        severity=min(math.log10(error / limit), 3.0) if astray else 0.0,
        source="as much noise as gradient, or, where the layers' own gradients are noisy, a third: "
        "FP4 All the Way, arXiv 2505.19115; healthy: at most 0.5 (fp8), 0.22 (int8, mxfp8)",
    )  # fmt: skip
    return replace(
        verdict,
        findings=((found,) if astray else ()) + others,
        checked=f"{verdict.checked}; the gradient's cosine, {cosine:.5f}",
        rules=tuple(dict.fromkeys((*verdict.rules, ASTRAY))),
    )


def bounded(layers: Mapping[tuple[str, str], Sequence[MonitorRow]]) -> Finding | None:
    """A finding where what the layers' grad_inputs lose, each by itself, adds up: errors at right
    angles to one another and to the gradient add in tan^2 along a chain of layers."""
    role = RESULTS["grad_input"]
    tensors = {layer: rows for (layer, own), rows in layers.items() if own == role}
    errors = [error for rows in tensors.values() if (error := _typical(rows)) is not None]
    whole = sum(errors)
    if whole < BOUND or median(errors) < EACH:
        return None
    steps = sorted({row.step for rows in tensors.values() for row in rows})
    cosine = cosine_of(whole) if math.isfinite(whole) else 0.0
    return replace(
        _FINDING, value=whole, threshold=BOUND, seen=len(steps), records=len(steps),
        first=steps[0], last=steps[-1], severity=min(math.log10(whole / BOUND), 1.5),
        cause=f"each layer adds noise to the gradient that it hands on, the median one "
        f"{short(median(errors))} of its power; where nothing passes the layers by (a skip "
        f"connection), {in_words(cosine)}",
        remedy=f"measure it: diagnose(record, model=model, inputs=..., targets=...), or qtrain "
        f"diagnose RUN --gradient; {_REMEDY}",
        source=f"as much noise as gradient, {EACH} of it in half of the layers; healthy: at most "
        "0.1 and 0.005 (8 bits), 0.7 and 0.03 (6 bits)",
    )  # fmt: skip


def _typical(rows: Iterable[MonitorRow]) -> float | None:
    """The median tan^2 over the records; inf where nothing is left, None where none is known."""
    cosines = [row.cosine for row in rows if not math.isnan(row.cosine)]
    return median(error_of(c) if c > 0 else math.inf for c in cosines) if cosines else None
