"""Multi-head attention around its products: heads, masks, appended keys, what is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .attend import Product, attend, lost_rows


class Heads(NamedTuple):
    """What a multi-head attention is beside its projections' weights.

    name               of its layer, for errors
    number             of heads
    dropout_p          of the attention weights, 0 in evaluation
    bias_k, bias_v     (1, 1, E): a learned key and value that is appended, or None
    static_k, static_v (batch * heads, S, E / heads): instead of what is projected, or None
    add_zero_attn      whether a key and a value of zeros are appended too
    query_chunk        see `Recipe`
    """

    name: str
    number: int
    dropout_p: float = 0.0
    bias_k: Tensor | None = None
    bias_v: Tensor | None = None
    static_k: Tensor | None = None
    static_v: Tensor | None = None
    add_zero_attn: bool = False
    query_chunk: int | None = None


def multihead(
    heads: Heads,
    projections: Sequence[Callable[[Tensor], Tensor]],
    scores: Product,
    context: Product,
    out_proj: Callable[[Tensor], Tensor],
    inputs: Sequence[Tensor],
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    need_weights: bool,
    average_attn_weights: bool,
    is_causal: bool,
    batch_axis: int,
) -> tuple[Tensor, Tensor | None]:
    """F.multi_head_attention_forward.

    projections  of query, key and value
    inputs       query, key and value, (N, L or S, E) where batch_axis is 0, (L or S, N, E) where it
                 is 1, without N where there is no batch
    -> output, as query; weights, (N, L, S) if averaged, else (N, heads, L, S), if needed
    """
    if is_causal and attn_mask is None:
        raise ValueError("is_causal is a hint about attn_mask: pass attn_mask too")
    batched = inputs[0].dim() == 3
    if not batched:
        inputs = [x.unsqueeze(0) for x in inputs]
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
    elif batch_axis:
        inputs = [x.transpose(0, 1) for x in inputs]
    statics = None, heads.static_k, heads.static_v
    q, k, v = [
        project(x) if static is None else _merged(static, heads.number)
        for project, x, static in zip(projections, inputs, statics, strict=True)
    ]
    mask = _mask(heads, attn_mask, key_padding_mask, q, k.shape[1])
    if heads.bias_k is not None and heads.bias_v is not None:
        k = torch.cat([k, heads.bias_k.expand(k.shape[0], -1, -1)], 1)
        v = torch.cat([v, heads.bias_v.expand(v.shape[0], -1, -1)], 1)
    q, k, v = [x.unflatten(2, (heads.number, -1)).transpose(1, 2) for x in (q, k, v)]
    if heads.add_zero_attn:
        k = torch.cat([k, k.new_zeros(*k.shape[:2], 1, k.shape[3])], 2)
        v = torch.cat([v, v.new_zeros(*v.shape[:2], 1, v.shape[3])], 2)
    if mask is not None:  # learned and zero keys are appended and always visible
        mask = F.pad(mask, (0, k.shape[2] - mask.shape[-1]))
    output, weights, lost = attend(
        scores, context, q, k, v, mask, heads.dropout_p, None,
        unseeing="nan" if need_weights else "zero", weighs=need_weights,
        query_chunk=heads.query_chunk,
    )  # fmt: skip
    output = out_proj(output.transpose(1, 2).flatten(2))
    if lost is not None:  # by one head is by all: the projection adds them
        lost_by_any = lost.any(1) if lost.dim() == 4 else lost
        output = lost_rows(output, lost_by_any)
    if weights is not None:
        weights = lost_rows(weights, lost)
        weights = weights.mean(1) if average_attn_weights else weights
    if not batched:
        return output.squeeze(0), None if weights is None else weights.squeeze(0)
    return output.transpose(0, 1) if batch_axis else output, weights


def _merged(static: Tensor, heads: int) -> Tensor:
    """(N * heads, S, E / heads) -> (N, S, E)."""
    found: Tensor = static.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)
    return found


def _mask(
    heads: Heads, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, keys: int
) -> Tensor | None:
    """One additive mask, broadcastable to (batch, heads, queries, keys).  q: projected."""
    batch, queries = q.shape[:2]
    total: Tensor | None = None
    for name, mask, allowed in (
        ("attn_mask", attn_mask, [(queries, keys), (batch * heads.number, queries, keys)]),
        ("key_padding_mask", padding, [(batch, keys)]),
    ):
        if mask is None:
            continue
        if tuple(mask.shape) not in allowed:
            raise ValueError(
                f"layer {heads.name!r}: {name} has shape {tuple(mask.shape)}, need "
                f"{' or '.join(map(str, allowed))}"
            )
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, float("-inf"))
        elif not mask.is_floating_point():
            raise TypeError(
                f"layer {heads.name!r}: {name} is {mask.dtype}, need bool (True: hidden) "
                f"or floating point (added)"
            )
        if name == "key_padding_mask":
            mask = mask[:, None, None, :]
        elif mask.dim() == 3:
            mask = mask.unflatten(0, (-1, heads.number))
        total = mask if total is None else total + mask
    return total
