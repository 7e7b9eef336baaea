"""Attention as modules, and their conversions.

F.scaled_dot_product_attention is a function: a model that calls it keeps it in full precision;
`ScaledDotProductAttention` is the same operation as a module.  `nn.MultiheadAttention` reads its
children's weights directly and has an inference fast path; its conversion does neither.

A query that its masks hide from every key, or whose mask is not finite, is judged alone: its output
is what torch's is, 0 or NaN, and the others keep the bits they have without it, as do all gradients
of a loss that ignores it (torch's would be NaN).  That is said of masks: query, key and value, as
the operands of every layer, have the scales their quantizers give them, and where one scale serves
them all a NaN in one row, which somebody may mean to mask later, is everybody's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..products.module import QProduct, Shapes, recipe_names, shapes_of
from ..products.operations import Linear
from .attend import Causal, attend, lost_rows
from .matmul import ANY_SHAPES, matmul
from .multihead import Heads, multihead


class ScaledDotProductAttention(nn.Module):
    """F.scaled_dot_product_attention as a module.

    query: (*, L, E), key: (*, S, E), value: (*, S, Ev) -> (*, L, Ev).
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )


def query_chunk(scores: QProduct, context: QProduct) -> int | None:
    """How many queries attention takes at a time: what the recipes of its products name, of two the
    fewer."""
    named = [product.recipe.query_chunk for product in (scores, context)]
    return min([size for size in named if size is not None], default=None)


class QScaledDotProductAttention(ScaledDotProductAttention):
    """Attention whose two products, scores and context, follow a recipe; softmax does not."""

    scores: QProduct
    context: QProduct

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if self.scores.recipe.products_off and self.context.recipe.products_off:
            return super().forward(
                query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
            )
        if attn_mask is not None and attn_mask.dtype not in {
            torch.bool, torch.float32, query.dtype,
        }:  # fmt: skip
            raise TypeError(
                f"attn_mask: got {attn_mask.dtype}, need bool (True: attend), float32 or the "
                f"query's {query.dtype}"
            )
        if enable_gqa:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
            value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
        if is_causal:
            if attn_mask is not None:
                raise ValueError("is_causal and attn_mask were both given; give one of them")
        found = attend(
            partial(matmul, self.scores), partial(matmul, self.context),
            query, key, value, Causal() if is_causal else attn_mask, dropout_p, scale,
            weighs=False, query_chunk=query_chunk(self.scores, self.context),
            unseeing=None if is_causal else "zero",  # every query sees the first key
        )  # fmt: skip
        return lost_rows(found.output, found.lost)

    @staticmethod
    def products(module: nn.Module) -> dict[str, Shapes]:
        """The products of the layer: child name -> shapes."""
        return {"scores": ANY_SHAPES, "context": ANY_SHAPES}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({recipe_names(self)})"


class QMultiheadAttention(nn.MultiheadAttention):
    """torch.nn.MultiheadAttention whose six products (three projections, scores, context, output
    projection) follow a recipe, in training and evaluation alike."""

    q_proj: QProduct
    k_proj: QProduct
    v_proj: QProduct
    scores: QProduct
    context: QProduct

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if self._is_off:
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask,
                average_attn_weights, is_causal,
            )  # fmt: skip
        return multihead(
            Heads(
                self.scores.name, self.num_heads, self.dropout if self.training else 0.0,
                self.bias_k, self.bias_v, add_zero_attn=self.add_zero_attn,
                query_chunk=query_chunk(self.scores, self.context),
            ),
            self._projections(), partial(matmul, self.scores), partial(matmul, self.context),
            self.out_proj, (query, key, value), attn_mask, key_padding_mask,
            need_weights, average_attn_weights, is_causal, batch_axis=int(not self.batch_first),
        )  # fmt: skip

    @property
    def _is_off(self) -> bool:
        """Whether torch's forward, which reads the output projection's weight, will do."""
        products = [self.q_proj, self.k_proj, self.v_proj, self.scores, self.context]
        projection = getattr(self.out_proj, "product", None)
        if isinstance(projection, QProduct):
            products.append(projection)
        return all(product.recipe.products_off for product in products)

    def _projections(self) -> list[Callable[[Tensor], Tensor]]:
        if self._qkv_same_embed_dim:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases: Any = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        products = (self.q_proj, self.k_proj, self.v_proj)

        def projection(product: QProduct, weight: Tensor, bias: Any) -> Callable[[Tensor], Tensor]:
            return lambda x: product(Linear(), x, weight, bias)

        return [projection(*own) for own in zip(products, weights, biases, strict=True)]

    @staticmethod
    def products(module: nn.MultiheadAttention) -> dict[str, Shapes]:
        """The products of the layer beside its output projection: child name -> shapes."""
        size = module.embed_dim
        inputs = {"q_proj": size, "k_proj": module.kdim, "v_proj": module.vdim}
        projections = {k: shapes_of((1, size, n)) for k, n in inputs.items()}
        return {**projections, "scores": ANY_SHAPES, "context": ANY_SHAPES}

    def __repr__(self) -> str:
        text = f"{self.embed_dim}, heads={self.num_heads}"
        return f"{type(self).__name__}({text}; {recipe_names(self)})"
