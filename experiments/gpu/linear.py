"""A linear layer by several recipes, beside TF32."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qtrain import Recipe, quantize

from .clock import captured, milliseconds

#: tokens that the CPU computes too
TRIED = 16


def timed(
    shape: tuple[int, int, int],
    recipes: Mapping[str, Recipe | str],
    others: Mapping[str, Callable[[Tensor], object]],
    rounds: int,
    device: str,
) -> dict[str, Any]:
    """ms of a layer's forward, operands' quantizers included, by recipes whose output for a token
    depends on no other; and of what else is done with its input.

    shape: tokens, features out, features in.  error: 0 where the outputs are the CPU's to the bit,
    else 1.
    """
    tokens, out, features = shape
    torch.manual_seed(0)
    plain, x = nn.Linear(features, out), torch.randn(tokens, features)
    there, own = x.to(device), copy.deepcopy(plain).to(device)
    runs: dict[str, Any] = {"TF32": partial(own, there)}
    different = False
    with torch.no_grad():
        for name, recipe in recipes.items():
            layer = quantize(copy.deepcopy(plain), recipe=recipe)
            moved = copy.deepcopy(layer).to(device)
            different |= not torch.equal(moved(there)[:TRIED].cpu(), layer(x[:TRIED]))
            runs[name] = partial(moved, there)
        runs |= {name: partial(by, there) for name, by in others.items()}
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        times = milliseconds({name: captured(run) for name, run in runs.items()}, rounds, 3.0)
        torch.backends.cuda.matmul.allow_tf32 = before
    return {"shape": [*shape], "error": float(different), "ms": times}
