"""A verdict on updates in low precision: what rounding took from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantizers import udynamic8

from ..weights.updates.counts import UpdateReport, UpdateRow
from .verdict import GRAVE, Finding, Verdict

#: states that a step is divided by (the root of): torch's names of them
DIVISORS = (
    "exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "exp_inf", "row_var", "col_var",
    "variance",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """threshold: of the share that is lost, over all steps; the rest as in `Finding`."""

    symptom: str
    threshold: float
    cause: str
    remedy: str
    source: str


_LOST = _Rule(
    symptom="updates lost",
    threshold=0.5,
    cause="updates below half a step of the weight's format, which nearest rounding drops, weight "
    "decay with them: the weights stand still",
    remedy="Update(rounding=stochastic()) or compensation=bf16, more mantissa bits, or master "
    "weights (weight=None)",
    source="more than half of all updates; Zamirai et al. 2020, arXiv 2010.06192",
)
_DIVISOR = _Rule(
    symptom="divisor rounded to 0",
    threshold=1e-3,
    cause="numbers that the step is divided by became 0: where a gradient returns the step is "
    "divided by eps alone, and explodes",
    remedy="keep {tensor} in bf16, in smaller groups, {map}or in Expanded(); or "
    "round it up: rounding='ceil'",
    source="Dettmers et al. 2021, arXiv 2110.02861, and COAT, arXiv 2410.19313, on second moments",
)
_ZERO = _Rule(
    symptom="state rounded to 0",
    threshold=0.1,
    cause="the format does not reach as low as the state: small elements' memory is gone",
    remedy="keep {tensor} in bf16, in smaller groups, or in Expanded()",
    source="by definition: a tenth of the state is lost at every step",
)
_RULES = (_LOST, _DIVISOR, _ZERO)


def verdict_on_updates(report: UpdateReport) -> Verdict:
    """Findings by parameter and tensor, in the order of a verdict.  ValueError without a step."""
    if not report.rows:
        raise ValueError(
            "diagnose: no weight or state was kept in low precision in a step yet; train a few "
            "first (states of fewer elements than the update's min_size stay in fp32)"
        )
    found = [finding for row in report.rows if (finding := _finding(row)) is not None]
    found.sort(key=lambda f: (f.severity < GRAVE, f.first, -f.severity))
    names = {row.parameter for row in report.rows}
    checked = (
        f"the updates of {len(names)} parameters, {len(report.rows)} tensors, over "
        f"{report.rows[0].steps} steps"
    )
    rules = tuple(rule.symptom for rule in _RULES)
    return Verdict(findings=tuple(found), checked=checked, rules=rules)


def _finding(row: UpdateRow) -> Finding | None:
    if row.tensor == "weight":
        rule = _LOST
        if row.noisy:  # right in the mean
            return None
        kept = 1 - row.share
        severity = min(math.log10((1 - rule.threshold) / kept), 2) if kept else 2.0
    else:
        rule = _DIVISOR if row.tensor in DIVISORS else _ZERO
        severity = math.log10(row.share / rule.threshold) if row.share else -1.0
    if severity < 0:
        return None
    better = "" if udynamic8.name in row.kept else f"in the map {udynamic8.name}, "
    layer, _, leaf = row.parameter.rpartition(".")
    return Finding(
        layer=layer or "(model)",
        role=f"{leaf} update" if row.tensor == "weight" else f"{leaf} {row.tensor}",
        symptom=rule.symptom,
        value=row.share,
        threshold=rule.threshold,
        seen=row.times,
        records=row.steps,
        first=row.first,
        last=row.last,
        cause=f"{rule.cause} (kept in {row.kept})",
        remedy=rule.remedy.format(tensor=row.tensor, map=better),
        source=rule.source,
        severity=severity,
    )
