"""Quantizers and products in blocks: by the kernels, by torch's operations, beside TF32."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from qtrain.products.blockwise.rows import rows_of
from qtrain.products.blockwise.sums import block_sums
from quantizers import IntFormat, Quantizer, Scale, blocks, e2m1, e4m3, e8m0
from quantizers.devices.memory import eager

from .clock import Budget, captured, milliseconds

#: rows, columns, terms
SHAPES = ((8192, 1024, 1024), (8192, 4096, 1024), (1024, 1024, 8192))
_POWERS = Scale(e8m0, rule="rceil")
QUANTIZERS = {
    "e4m3, 32": Quantizer(format=e4m3, granularity=blocks(32), scale=_POWERS),
    "e2m1, 32": Quantizer(format=e2m1, granularity=blocks(32), scale=_POWERS),
    "int8, 32": Quantizer(format=IntFormat(8), granularity=blocks(32)),
    "e4m3, 128": Quantizer(format=e4m3, granularity=blocks(128)),
}


def timed(shape: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """ms of a product of two quantized matrices, and of quantizing the first; error: whether any
    bit differs from that of torch's operations, 0 or 1."""
    rows, columns, terms = shape
    draw = torch.Generator("cuda").manual_seed(0)
    x, w = (torch.randn((1, n, terms), generator=draw, device="cuda") for n in (rows, columns))
    runs: dict[str, Any] = {"TF32": partial(torch.matmul, x, w.mT)}
    different = False
    for name, by in QUANTIZERS.items():
        step = min(by.granularity.block_shape(x.shape)[-1], terms)
        a, b = rows_of(by(x), step), rows_of(by(w), step)
        runs[name], runs[f"{name}, quantizer"] = partial(block_sums, a, b), partial(by, x)
        with eager():
            want: Tensor = block_sums(a, b)
        different |= not torch.equal(block_sums(a, b), want)
        if name == "e4m3, 32":
            runs[f"{name}, torch"] = partial(_eager, partial(block_sums, a, b))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    times = milliseconds({name: captured(run) for name, run in runs.items()}, rounds, 3.0)
    torch.backends.cuda.matmul.allow_tf32 = before
    return {"shape": [*shape], "error": float(different), "ms": times}


def _eager(run: partial[Tensor]) -> Tensor:
    with eager():
        return run()


def run(budget: Budget, rounds: int) -> list[dict[str, Any]]:
    found = []
    for shape in SHAPES:
        if budget.left < 0:
            break
        found.append(timed(shape, rounds))
    return found
