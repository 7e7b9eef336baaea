"""What each judge makes of a blind draw, and which draws belong together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.microscope.faults import DECADES, FORESEEN, KINDS, decades

JUDGES = ("diagnose", "lowest SQNR", "largest fall")
#: of a size, in decades above the smallest; of a cost, decades of the cosine that is lost
SIZES = [(k / 2, k / 2 + 0.5) for k in range(2 * DECADES)]
COSTS = [(-math.inf, 1e-4), *((10.0**k, 10.0 ** (k + 1)) for k in range(-4, -1)), (0.1, math.inf)]
Draw = Mapping[str, Any]


def judged(draw: Draw, cell: Mapping[str, Any]) -> dict[str, Any]:
    """A draw with what each judge makes of it: `first`, `layer`, and of each fault `found`."""
    places = [(fault["layer"], fault["role"]) for fault in draw["faults"]]
    named = {(f[0], f[1]) for f in draw["findings"]}
    lows = [float(look["lowest"][2]) for look in cell["healthy"]]
    usual = [float(look["fall"][2]) for look in cell["healthy"] if look["fall"] is not None]
    tops = {
        "diagnose": draw["findings"][:1], "lowest SQNR": draw["lowest"][:1],
        "largest fall": draw["falls"][:1],
    }  # fmt: skip
    found = {
        "diagnose": [place in named for place in places],
        "lowest SQNR": [float(fault["sqnr"]) < min(lows) for fault in draw["faults"]],
        "largest fall": [float(fault["fall"]) < min(usual) for fault in draw["faults"]],
    }
    return {
        **draw,
        "lost": max(float(draw["lost"]), 0.0),
        "found": found,
        "first": {j: any((t[0], t[1]) in places for t in top) for j, top in tops.items()},
        "layer": {j: any(t[0] in dict(places) for t in top) for j, top in tops.items()},
    }


def groups() -> dict[str, list[str]]:
    return {"foreseen": list(FORESEEN), "unforeseen": [k for k in KINDS if k not in FORESEEN]}


def alone(draws: Sequence[Draw], kinds: Sequence[str]) -> list[Draw]:
    return [d for d in draws if len(d["faults"]) == 1 and d["faults"][0]["kind"] in kinds]


def sized(draws: Sequence[Draw], low: float, high: float) -> list[Draw]:
    """Draws of one fault by its size in decades above the smallest; "scale 0" has no size."""
    faults = [(draw, draw["faults"][0]) for draw in draws]
    return [
        draw
        for draw, own in faults
        if own["kind"] != "scale 0" and low <= decades(own["kind"], own["size"]) < high
    ]
