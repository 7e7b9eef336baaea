"""Attention's arithmetic between its two quantized products: scale, mask, softmax, dropout, of all
queries or of chunks of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .softmax import softmax

#: torch.matmul, or one that follows a recipe
Product = Callable[[Tensor, Tensor], Tensor]


def attend(
    scores: Product,
    context: Product,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | Causal | None,
    dropout_p: float,
    scale: float | None,
    *,
    unseeing: Literal["zero", "nan"] | None,
    weighs: bool,
    query_chunk: int | None,
) -> Attended:
    """softmax(query key^T scale + mask) value, and the weights after dropout where `weighs`.

    mask       added, or, boolean, True where attention is allowed
    unseeing   what a query gets that the mask lets attend to nothing: 0, as from
               F.scaled_dot_product_attention, or NaN, as from softmax; None: there is none

    Where query_chunk, `Recipe`'s, is fewer than the queries, a chunk of them after another: in the
    backward pass each chunk's forward is run again, as under activation checkpointing.
    """
    others = dropout_p, scale, unseeing, weighs
    queries = query.shape[-2]
    if query_chunk is None or query_chunk >= queries:
        return Attended(*_attend(scores, context, query, key, value, mask, *others))
    parts = []
    for begin in range(0, queries, query_chunk):
        rows = slice(begin, begin + query_chunk)
        own: Any = _rows(mask, rows)
        operands = query[..., rows, :], key, value, own
        if torch.is_grad_enabled():
            found = checkpoint(
                _attend, scores, context, *operands, *others,
                use_reentrant=False, preserve_rng_state=dropout_p > 0,
            )  # fmt: skip
        else:
            found = _attend(scores, context, *operands, *others)
        parts.append(found)
    outputs, weights, lost = zip(*parts, strict=True)
    return Attended(
        torch.cat(outputs, -2),
        torch.cat(weights, -2) if weighs else None,
        None if lost[0] is None else lost[0] if own is mask else torch.cat(lost, -2),
    )


class Causal(NamedTuple):
    """The mask that hides from each query the keys behind it; first: the first query's number."""

    first: int = 0

    def of(self, query: Tensor, keys: int) -> Tensor:
        """The mask, added, of these queries."""
        size = query.shape[-2], keys
        return query.new_full(size, float("-inf")).triu(1 + self.first)


def _rows(mask: Tensor | Causal | None, rows: slice) -> Tensor | Causal | None:
    """A mask of some queries."""
    if isinstance(mask, Causal):
        return Causal(rows.start)
    if mask is None or mask.dim() < 2 or mask.shape[-2] == 1:
        return mask
    return mask[..., rows, :]


def _attend(
    scores: Product,
    context: Product,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | Causal | None,
    dropout_p: float,
    scale: float | None,
    unseeing: Literal["zero", "nan"] | None,
    weighs: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`Attended` of all these queries."""
    if isinstance(mask, Causal):
        mask = mask.of(query, key.shape[-2])
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
    return context(weights, value), weights if weighs else None, lost


class Attended(NamedTuple):
    """What attention gives, before what is lost is marked by `lost_rows`.

    output    (*, L, Ev)
    weights   (*, L, S), or None
    lost      broadcastable to (*, L, 1): queries whose output and weights, 0 here, are to be NaN;
              None: there are none.  A NaN that met a quantizer with one scale for all, the context
              product's or that of a projection behind it, would be everybody's.
    """

    output: Tensor
    weights: Tensor | None
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
