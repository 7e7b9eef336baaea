"""Attention's arithmetic between its two quantized products: scale, mask, softmax, dropout."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .softmax import softmax

#: torch.matmul, or one that follows a recipe
Product = Callable[[Tensor, Tensor], Tensor]


def attend(
    scores: Product,
    context: Product,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    scale: float | None,
    *,
    unseeing: Literal["zero", "nan"] | None,
) -> Attended:
    """softmax(query key^T scale + mask) value, and the weights after dropout.

    mask       added, or, boolean, True where attention is allowed
    unseeing   what a query gets that the mask lets attend to nothing: 0, as from
               F.scaled_dot_product_attention, or NaN, as from softmax; None: there is none
    """
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    logits = scores(query * factor, key.transpose(-2, -1))
    lost = None
    if mask is not None:
        exact = mask.dtype == torch.bool
        if exact:
            mask = torch.zeros_like(mask, dtype=logits.dtype).masked_fill_(~mask, float("-inf"))
    if mask is None or unseeing is None or mask.shape[-1:] == (0,):
        weights = softmax(logits, mask, None)
    else:
        peak = mask.amax(-1, keepdim=True)  # -inf where all is hidden, NaN where anything is
        idle = ~peak.isfinite()
        weights = softmax(logits, mask, idle)
        if unseeing == "nan":
            lost = idle
        elif not exact:
            lost = idle & (peak != float("-inf"))
    if dropout_p > 0:
        weights = F.dropout(weights, dropout_p)
    return Attended(context(weights, value), weights, lost)


class Attended(NamedTuple):
    """What attention gives, before what is lost is marked by `lost_rows`.

    output    (*, L, Ev)
    weights   (*, L, S)
    lost      broadcastable to (*, L, 1): queries whose output and weights, 0 here, are to be NaN;
              None: there are none.  A NaN that met a quantizer with one scale for all, the context
              product's or that of a projection behind it, would be everybody's.
    """

    output: Tensor
    weights: Tensor
    lost: Tensor | None


def lost_rows(x: Tensor, lost: Tensor | None) -> Tensor:
    """x, NaN where lost."""
    if lost is None:
        return x
    marked: Tensor = _Lost.apply(x, lost)  # type: ignore[no-untyped-call]
    return marked


class _Lost(torch.autograd.Function):
    """NaN in some rows.  The gradient passes as it is: 0 from a loss that ignores them, and where
    it is not finite, whoever is behind shall see it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lost: Tensor) -> Tensor:
        return x.masked_fill(lost, float("nan"))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output, None
