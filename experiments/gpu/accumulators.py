"""Linear layers whose sums an accumulator computes, term by term, beside TF32."""

from __future__ import annotations

from typing import Any

from qtrain import Forward, Recipe
from quantizers import (
    FloatFormat,
    Format,
    IntFormat,
    Quantizer,
    accumulators,
    blocks,
    e4m3,
    e5m2,
    fp16,
    int8,
)

from . import linear
from .clock import Budget, each

#: tokens, features out, features in
SHAPES = ((1024, 1024, 1024), (8192, 512, 4608))
_SIXTEEN = FloatFormat(6, 9)
#: formats of the operands, accumulators
SUMS: dict[str, tuple[Format, accumulators.Accumulator]] = {
    "1-6-9": (e5m2, accumulators.sequential(_SIXTEEN)),
    "chunks": (e5m2, accumulators.sequential(_SIXTEEN, chunk=64)),
    "boundaries": (e4m3, accumulators.sequential(_SIXTEEN, chunk=64, inside="exact")),
    "fp16": (fp16, accumulators.sequential(fp16)),
    "H100 e4m3": (e4m3, accumulators.get("H100", e4m3)),
    "H100 fp16": (fp16, accumulators.get("H100", fp16)),
    "int16": (int8, accumulators.integer(16, overflow="saturate")),
}


def recipe(format: Format, accumulator: accumulators.Accumulator) -> Recipe:
    """Of operands without scales, where a format needs none, else one a token."""
    if isinstance(format, IntFormat):
        operand = Quantizer(format=format, granularity=blocks(None))
    else:
        operand = Quantizer(format=format, range=None)
    return Recipe(
        name="accumulated", forward=Forward(input=operand, weight=operand, accumulator=accumulator)
    )


RECIPES = {name: recipe(*own) for name, own in SUMS.items()} | {"lba": "lba"}


def timed(shape: tuple[int, int, int], rounds: int, device: str = "cuda") -> dict[str, Any]:
    return linear.timed(shape, RECIPES, {}, rounds, device)


def run(budget: Budget, rounds: int) -> list[dict[str, Any]]:
    return each(SHAPES, timed, budget, rounds)
