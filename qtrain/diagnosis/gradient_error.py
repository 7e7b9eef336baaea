"""How far one gradient of a model is from another, in direction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """parameter -> its gradient as it now is, of those that have one."""
    return {
        name: p.grad.detach().to_dense() if p.grad.is_sparse else p.grad.detach()
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def moments(found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """parameter -> (|r|^2, (g - r).r, |g - r|^2), fp64 on the CPU: g of `found`, r of `reference`.

    A parameter that has no gradient in one of the two counts as zeros there.
    """
    sums = {}
    for name in dict.fromkeys((*reference, *found)):
        like = reference[name] if name in reference else found[name]
        g, r = (
            each[name].double().flatten() if name in each else like.new_zeros(like.numel()).double()
            for each in (found, reference)
        )
        error = g - r
        sums[name] = torch.stack([r @ r, error @ r, error @ error]).cpu()
    return sums


def cosine_and_error(parts: Iterable[Tensor]) -> tuple[float, float]:
    """(cosine of a gradient and its reference, tan^2 of their angle), from values of `moments`.

    tan^2 = 1 / cos^2 - 1, without the cancellation near a cosine of 1; inf from a right angle on.
    A gradient of zeros is at a right angle; a reference of zeros gives NaN.
    """
    whole, along, square = torch.stack(list(parts)).sum(0).tolist()
    if whole == 0:
        return math.nan, math.nan
    projection = whole + along  # of the gradient on the reference, times the latter's length
    if projection == 0:
        return 0.0, math.inf
    across = max(square - along * (along / whole), 0.0)
    error = (across / projection) * (whole / projection)
    cosine = math.copysign(1 / math.sqrt(1 + error), projection)
    return cosine, math.inf if cosine < 0 else error
