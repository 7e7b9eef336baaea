"""Attention, alone and with the projections around it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...layers.attention import query_chunk
from ...layers.matmul import matmul
from ...layers.multihead import Heads, multihead
from .calling import Calling


def attention(call: Calling, *args: Any, **kwargs: Any) -> Any:
    """F.scaled_dot_product_attention."""
    layer = call.layer("attention")
    return call.plain() if layer is None else layer(*args, **kwargs)


def multihead_attention(
    call: Calling, query: Tensor, key: Tensor, value: Tensor, embed_dim_to_check: int,
    num_heads: int, in_proj_weight: Tensor | None, in_proj_bias: Tensor | None,
    bias_k: Tensor | None, bias_v: Tensor | None, add_zero_attn: bool, dropout_p: float,
    out_proj_weight: Tensor, out_proj_bias: Tensor | None, training: bool = True,
    key_padding_mask: Tensor | None = None, need_weights: bool = True,
    attn_mask: Tensor | None = None, use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None, k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None, static_k: Tensor | None = None,
    static_v: Tensor | None = None, average_attn_weights: bool = True, is_causal: bool = False,
) -> Any:  # fmt: skip
    """F.multi_head_attention_forward: linear layers of query, key, value (none for one that is
    static) and output, and an attention layer between; one that is left is torch's own."""
    weights: Any = q_proj_weight, k_proj_weight, v_proj_weight
    if not use_separate_proj_weight and in_proj_weight is not None:
        weights = in_proj_weight.chunk(3)
    if (
        any(weight is None for weight in weights)
        or query.shape[-1] != embed_dim_to_check
        or embed_dim_to_check % num_heads
        or (bias_k is None) != (bias_v is None)
        or (bias_k is not None and not (static_k is None and static_v is None))
        or (static_k is not None and static_k.shape[2] * num_heads != embed_dim_to_check)
        or (static_v is not None and static_v.shape[2] * num_heads != embed_dim_to_check)
    ):
        return call.plain()  # torch says what is wrong
    biases: Any = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    found: list[Any] = [
        None if static is not None else call.layer("linear", (1, *weight.shape), weight)
        for weight, static in zip(weights, (None, static_k, static_v), strict=True)
    ]
    between = call.layer("attention")
    out = call.layer("linear", (1, *out_proj_weight.shape), out_proj_weight)
    if all(layer is None for layer in (*found, between, out)):
        return call.plain()

    def linear(layer: Any, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        run = partial(call.left, F.linear) if layer is None else layer
        return lambda x: run(x, weight, bias)

    chunk = None
    if between is None:
        scores = context = partial(call.left, torch.matmul)
    else:
        scores, context = partial(matmul, between.scores), partial(matmul, between.context)
        chunk = query_chunk(between.scores, between.context)
    return multihead(
        Heads(
            "F.multi_head_attention_forward", num_heads, dropout_p if training else 0.0,
            bias_k, bias_v, static_k, static_v, add_zero_attn, chunk,
        ),
        [linear(*own) for own in zip(found, weights, biases, strict=True)], scores, context,
        linear(out, out_proj_weight, out_proj_bias), (query, key, value), attn_mask,
        key_padding_mask, need_weights, average_attn_weights, is_causal, batch_axis=1,
    )  # fmt: skip
