"""The row of a report, the error of one tensor of one layer; the names of its roles, and what many
rows hold together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..products.operations import KINDS, Kind
from ..recipe import OPERANDS, SLOTS

#: the role under which each operand slot is reported
OPERAND_ROLES = {
    (product, operand): operand if product == "forward" else f"{operand} ({product})"
    for product, operand in SLOTS
}
#: the same, by role
SLOT_OF = {role: slot for slot, role in OPERAND_ROLES.items()}
#: the role under which each product's result is reported
RESULTS: dict[Kind, str] = {
    "forward": "output",
    "grad_input": "grad_input",
    "grad_weight": "grad_weight",
}
#: the role under which the error of a product's accumulator alone is reported
SUMS: dict[Kind, str] = {kind: f"{role} (accumulator)" for kind, role in RESULTS.items()}
#: The order in which a layer's roles are listed.
ROLES: tuple[str, ...] = tuple(
    role
    for kind in KINDS
    for role in (
        *(OPERAND_ROLES[kind, operand] for operand in OPERANDS[kind]), RESULTS[kind], SUMS[kind]
    )
)  # fmt: skip


_Row = TypeVar("_Row", bound="Row")


@dataclass(frozen=True)
class Row:
    """The error of one tensor of one layer, against the same tensor in full precision.

    layer       module path;  role: input, weight, output, grad_output (of either backward
                product), grad_input, grad_weight; of these with "(accumulator)" the error that
                their accumulator alone makes, against the exact sums of the same elements
    sqnr_db     10 log10(sum x^2 / sum (q - x)^2), dB; inf without error
    cosine      of x and q
    bias        mean signed error, mean(q - x), in the tensor's own unit
    clipped     fraction of elements outside the representable interval; of sums that overflowed
    zeroed      fraction of elements that are not 0 but became 0
    nonfinite   how many elements of q are NaN or infinite
    low, high   the range of x
    elements    how many elements
    note        what else to know, such as a scale folded in
    relative_bias   the mean signed error in units of the mean magnitude, mean(q - x) / mean|x|
    saturated   fraction of elements at an end of the format's range that is not 0
    gain        what the error has of the signal, <q - x, x> / <x, x>: 0 where it has nothing of it,
                -1 where nothing of the signal is left
    """

    layer: str
    role: str
    sqnr_db: float
    cosine: float
    bias: float
    clipped: float
    zeroed: float
    nonfinite: int
    low: float
    high: float
    elements: int
    note: str = ""
    relative_bias: float = math.nan
    saturated: float = 0.0
    gain: float = math.nan


def layers_of(rows: Sequence[Row]) -> list[str]:
    """The layers' names, in network order."""
    return list(dict.fromkeys(row.layer for row in rows))


def roles_of(rows: Sequence[Row]) -> list[str]:
    """Every role that some layer has, in the order of the layer that has them all."""
    places: dict[str, int] = {}
    place, last = 0, None
    for row in rows:
        place = place + 1 if row.layer == last else 0
        places[row.role] = max(places.get(row.role, 0), place)
        last = row.layer
    return sorted(places, key=lambda role: places[role])


def worst_first(rows: Sequence[_Row]) -> list[_Row]:
    """The rows by their SQNR, a NaN before the lowest."""
    return sorted(rows, key=lambda row: -math.inf if math.isnan(row.sqnr_db) else row.sqnr_db)
