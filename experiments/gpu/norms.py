"""Norms with a deviation of their own by themselves, beside cuDNN's batch-norm."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from qtrain.norms.deviations import Deviation, l1, l2, range_
from qtrain.norms.normalize import Form
from qtrain.norms.operations import gradients, normalize

from .clock import Budget, captured, milliseconds

#: N, C, H
SHAPES = ((128, 64, 32), (128, 512, 4), (64, 256, 56), (64, 2048, 7))
DEVIATIONS = {"range": range_(), "range of 16": range_(16), "l1": l1(), "l2": l2()}


def _form(deviation: Deviation, dtype: torch.dtype) -> Form:
    return Form(deviation, "exact", 1e-5, False, None, dtype)


def timed(shape: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """Forward and backward of fp32 images, channels-last, ms.

    shape: N, C, H.  error: the largest of an output's and a gradient's, to fp64's range.
    """
    n, c, h = shape
    draw = torch.Generator("cuda").manual_seed(0)
    x, g = (
        torch.randn((n, c, h, h), generator=draw, device="cuda").contiguous(
            memory_format=torch.channels_last
        )
        for _ in range(2)
    )
    weight, bias = torch.rand(c, device="cuda") + 0.5, torch.rand(c, device="cuda")
    runs: dict[str, Any] = {}
    error = 0.0
    for name, deviation in DEVIATIONS.items():
        form = _form(deviation, torch.float32)
        made = normalize(x, weight, bias, form)
        back = x, weight, bias, made._replace(output=g), form
        runs[name] = partial(normalize, x, weight, bias, form)
        runs[f"{name}, backward"] = partial(gradients, *back)
        wide = _form(deviation, torch.float64)
        want = normalize(x.double(), weight, bias, wide)
        grads = gradients(x.double(), weight, bias, want._replace(output=g.double()), wide)
        pairs = (made.output, want.output), (gradients(*back)[0], grads[0])
        error = max(error, *(_error(*pair) for pair in pairs))
    cudnn = torch.ops.aten
    y = cudnn.cudnn_batch_norm(x, weight, bias, None, None, True, 0.1, 1e-5)
    runs["cuDNN"] = partial(cudnn.cudnn_batch_norm, x, weight, bias, None, None, True, 0.1, 1e-5)
    runs["cuDNN, backward"] = partial(
        cudnn.cudnn_batch_norm_backward, x, g, weight, None, None, y[1], y[2], 1e-5, y[3]
    )
    times = milliseconds({name: captured(run) for name, run in runs.items()}, rounds, 3.0)
    return {"shape": [*shape], "error": error, "ms": times}


def _error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want).abs().max() / want.abs().max()).item()


@torch.no_grad()
def run(budget: Budget, rounds: int) -> list[dict[str, Any]]:
    found = []
    for shape in SHAPES:
        if budget.left < 0:
            break
        found.append(timed(shape, rounds))
    return found
