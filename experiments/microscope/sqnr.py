"""The two baselines of a verdict: operands ranked by their SQNR, or by how far it has fallen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from qtrain.inspection.row import SLOT_OF
from qtrain.inspection.rows import MonitorRow

Tensors = dict[tuple[str, str], float]


def operands(rows: Sequence[MonitorRow]) -> Tensors:
    """The median SQNR in dB of each operand over its records, of a NaN -inf."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row.role in SLOT_OF:
            sqnr = -math.inf if math.isnan(row.sqnr_db) else row.sqnr_db
            found.setdefault((row.layer, row.role), []).append(sqnr)
    return {tensor: median(values) for tensor, values in found.items()}


def falls(sqnr: Tensors, reference: Tensors) -> Tensors:
    """How far below the reference each is, as a negative number of dB; 0 of two infinities."""
    return {
        tensor: 0.0 if value == reference[tensor] else value - reference[tensor]
        for tensor, value in sqnr.items()
    }


def ranked(tensors: Tensors) -> list[list[Any]]:
    """[layer, role, value], the lowest first, of equal ones the first in network order."""
    order = sorted(tensors.items(), key=lambda item: item[1])
    return [[*tensor, value] for tensor, value in order]
