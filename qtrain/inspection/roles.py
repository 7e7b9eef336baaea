"""The names under which a layer's operands and results are reported."""

from __future__ import annotations

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
#: The order in which a layer's roles are listed.
ROLES: tuple[str, ...] = tuple(
    role
    for kind in KINDS
    for role in (*(OPERAND_ROLES[kind, operand] for operand in OPERANDS[kind]), RESULTS[kind])
)
