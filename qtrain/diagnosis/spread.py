"""NaN and infinities spread to all that comes after them: one finding names where they began."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..inspection.row import ROLES, SUMS
from ..reports.numbers import count
from .rules import NOT_FINITE
from .verdict import Finding


def gathered(findings: Sequence[Finding], layers: Sequence[str]) -> list[Finding]:
    """The findings, with the earliest alone of what is not finite, and how far that has spread.

    layers: all that are recorded, in the order of the network.
    """
    lost = [finding for finding in findings if finding.symptom == NOT_FINITE]
    if len(lost) < 2:
        return list(findings)
    first = min(lost, key=lambda finding: (finding.first, place(finding, layers)))
    reached = {finding.layer for finding in lost}
    spread = (
        f"{first.cause}; from step {first.first} on it has spread to "
        f"{count(len(lost) - 1, 'more tensor')} of {count(len(reached), 'layer')}"
    )
    told = replace(first, cause=spread)
    kept = [told if finding is first else finding for finding in findings]
    return [finding for finding in kept if finding is told or finding.symptom != NOT_FINITE]


def place(finding: Finding, layers: Sequence[str]) -> tuple[int, int, float]:
    """When in a training step a tensor comes: the forward pass in the order of the network, the
    backward pass against it; sums before the result that is made of them."""
    role, layer = ROLES.index(finding.role), layers.index(finding.layer)
    place = role - 1.5 if finding.role in SUMS.values() else role
    backward = role > ROLES.index(SUMS["forward"])
    return int(backward), -layer if backward else layer, place
