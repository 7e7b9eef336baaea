"""What each unit of a recommendation errs, and what it costs to widen it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from .. import checks
from ..hardware.report import CostReport
from .parts import BY, PRODUCTS
from .sensitivity_report import SensitivityReport
from .widened import Widened


def errors_of(
    report: SensitivityReport, unit: Callable[[str, str, str], str], by: str
) -> dict[str, float]:
    """The errors of the parts of each unit, quantized alone; inf for a NaN."""
    if not isinstance(report, SensitivityReport):
        raise TypeError(f"report: got {type(report).__name__}, need what sensitivity() returns")
    if BY.index(report.by) < BY.index(by):
        raise ValueError(
            f"report: is by {report.by!r}, which says nothing of a {by}; give that of "
            f"sensitivity(..., by={by!r})"
        )
    if all(math.isnan(row.alone_cosine) for row in report.rows):
        raise ValueError(
            "report: every cosine in it is NaN: the gradient in full precision is 0 or not finite, "
            "or is not with any one layer quantized; give sensitivity another batch or loss"
        )
    found: dict[str, float] = {}
    for row in report.rows:
        error = math.inf if math.isnan(row.alone_error) else row.alone_error
        name = unit(row.layer, row.part, row.module)
        found[name] = found.get(name, 0.0) + error
    return found


def costs_of(
    report: SensitivityReport,
    unit: Callable[[str, str, str], str],
    cost: CostReport | Mapping[str, float] | None,
    added: Mapping[str, float],
    model: Widened | None,
    by: str,
) -> tuple[dict[str, float], str, float]:
    """The cost of each unit of the report, what it is of, and what all of that is."""
    names = dict.fromkeys(unit(row.layer, row.part, row.module) for row in report.rows)
    if cost is None:
        if by == "layer" or model is None:
            return dict.fromkeys(names, 1.0), "layers", len(names)
        return dict(added), "bits", model.bits
    if not isinstance(cost, CostReport | Mapping):
        raise TypeError(
            f"cost: got {type(cost).__name__}, need a CostReport, or numbers by layer's name"
        )
    found: dict[str, float] = {}
    if isinstance(cost, CostReport):
        macs: dict[tuple[str, str], int] = {}
        for row in cost.rows:
            key = row.layer, row.product
            macs[key] = macs.get(key, 0) + row.macs
        products: dict[str, set[tuple[str, str]]] = {name: set() for name in names}
        for part in report.rows:
            own = PRODUCTS.get(part.part, part.part)
            products[unit(part.layer, part.part, part.module)] |= {
                key for key in macs if key[0] == part.layer and (by == "layer" or key[1] == own)
            }
        found = {n: float(sum(macs[key] for key in keys)) for n, keys in products.items() if keys}
    else:
        found = {name: checks.number(f"cost of {name!r}", cost[name], low=0) for name in cost}
    missing, unknown = [n for n in names if n not in found], [n for n in found if n not in names]
    if missing:
        raise ValueError(f"cost: got none of {', '.join(missing)}, which the report has")
    if unknown:
        raise ValueError(f"cost: got {', '.join(unknown)}; the report has {', '.join(names)}")
    if not sum(found.values()):
        raise ValueError("cost: every layer's is 0; give at least one that is not")
    name = "multiply-adds" if isinstance(cost, CostReport) else "cost"
    return found, name, sum(found.values())
