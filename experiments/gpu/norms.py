"""Norms with a deviation of their own by themselves, beside cuDNN's batch-norm."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qtrain import NormRecipe, deviations, quantize

from .clock import Budget, captured, each, milliseconds

#: N, C, H
SHAPES = ((128, 64, 32), (128, 512, 4), (64, 256, 56), (64, 2048, 7))
DEVIATIONS = {
    "range": deviations.range_(),
    "range of 16": deviations.range_(16),
    "l1": deviations.l1(),
}


def _step(norm: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Output and the gradients of input and parameters."""
    x = x.detach().requires_grad_()
    output: Tensor = norm(x)
    return output, *torch.autograd.grad(output, [x, *norm.parameters()], grad)


def timed(shape: tuple[int, int, int], rounds: int, device: str = "cuda") -> dict[str, Any]:
    """Forward alone, and with backward, of fp32 images, channels-last, ms.

    shape: N, C, H.  error: the largest of an output's or a gradient's, to fp64's largest.
    """
    n, c, h = shape
    draw = torch.Generator(device).manual_seed(0)
    x, grad = (
        torch.randn((n, c, h, h), generator=draw, device=device).contiguous(
            memory_format=torch.channels_last
        )
        for _ in range(2)
    )
    plain = nn.Sequential(nn.BatchNorm2d(c)).to(device)
    norms = {
        name: quantize(copy.deepcopy(plain), norm=NormRecipe(deviation=deviation))
        for name, deviation in DEVIATIONS.items()
    }
    error = 0.0
    for norm in norms.values():
        wide = _step(copy.deepcopy(norm).double(), x.double(), grad.double())
        pairs = zip(_step(norm, x, grad), wide, strict=True)
        error = max(error, *(_error(*pair) for pair in pairs))
    runs: dict[str, Any] = {}
    for name, norm in {**norms, "cuDNN": plain}.items():
        runs[name] = captured(partial(norm, x))
        runs[f"{name}, backward"] = captured(partial(_step, norm, x, grad))
    return {"shape": [*shape], "error": error, "ms": milliseconds(runs, rounds, 3.0)}


def _error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want).abs().max() / want.abs().max()).item()


def run(budget: Budget, rounds: int) -> list[dict[str, Any]]:
    return each(SHAPES, timed, budget, rounds)
