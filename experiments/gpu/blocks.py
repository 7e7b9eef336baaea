"""Linear layers and quantizers in blocks along the sum, beside TF32."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import nn

from qtrain import quantize
from quantizers import Quantizer, Scale, blocks, e2m1, e4m3, e8m0

from .clock import Budget, captured, each, milliseconds

#: tokens, features out, features in
SHAPES = ((8192, 1024, 1024), (8192, 4096, 1024), (1024, 1024, 8192))
#: whose output for a token depends on no other
RECIPES = ("mxfp8", "mxint8")
QUANTIZERS = {
    "e4m3, 32": Quantizer(
        format=e4m3, granularity=blocks(32), scale=Scale(e8m0, rule="rceil")
    ),
    "e2m1, two levels": Quantizer(
        format=e2m1, granularity=blocks(16), scale=Scale(e4m3, over=Scale(top=448))
    ),
}  # fmt: skip
#: tokens that the CPU computes too
TRIED = 16


def timed(shape: tuple[int, int, int], rounds: int, device: str = "cuda") -> dict[str, Any]:
    """ms of a layer's forward, operands' quantizers included, and of quantizing its input.

    error: 0 where the outputs are the CPU's to the bit, else 1.
    """
    tokens, out, features = shape
    torch.manual_seed(0)
    plain, x = nn.Linear(features, out), torch.randn(tokens, features)
    there, own = x.to(device), copy.deepcopy(plain).to(device)
    runs: dict[str, Any] = {"TF32": partial(own, there)}
    different = False
    with torch.no_grad():
        for recipe in RECIPES:
            layer = quantize(copy.deepcopy(plain), recipe=recipe)
            moved = copy.deepcopy(layer).to(device)
            different |= not torch.equal(moved(there)[:TRIED].cpu(), layer(x[:TRIED]))
            runs[recipe] = partial(moved, there)
        runs |= {name: partial(by, there) for name, by in QUANTIZERS.items()}
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        times = milliseconds({name: captured(run) for name, run in runs.items()}, rounds, 3.0)
        torch.backends.cuda.matmul.allow_tf32 = before
    return {"shape": [*shape], "error": float(different), "ms": times}


def run(budget: Budget, rounds: int) -> list[dict[str, Any]]:
    return each(SHAPES, timed, budget, rounds)
