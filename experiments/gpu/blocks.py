"""Linear layers and quantizers in blocks along the sum, beside TF32."""

from __future__ import annotations

from typing import Any

from quantizers import Quantizer, Scale, blocks, e2m1, e4m3, e8m0

from . import linear
from .clock import Budget, each

#: tokens, features out, features in
SHAPES = ((8192, 1024, 1024), (8192, 4096, 1024), (1024, 1024, 8192))
RECIPES = {name: name for name in ("mxfp8", "mxint8")}
QUANTIZERS = {
    "e4m3, 32": Quantizer(
        format=e4m3, granularity=blocks(32), scale=Scale(e8m0, rule="rceil")
    ),
    "e2m1, two levels": Quantizer(
        format=e2m1, granularity=blocks(16), scale=Scale(e4m3, over=Scale(top=448))
    ),
}  # fmt: skip


def timed(shape: tuple[int, int, int], rounds: int, device: str = "cuda") -> dict[str, Any]:
    return linear.timed(shape, RECIPES, QUANTIZERS, rounds, device)


def run(budget: Budget, rounds: int) -> list[dict[str, Any]]:
    return each(SHAPES, timed, budget, rounds)
