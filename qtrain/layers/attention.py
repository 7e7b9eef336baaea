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

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..products.module import QProduct, Shapes, recipe_names, shapes_of
from ..products.operations import Linear
from .attend import Causal, attend, lost_rows
from .matmul import ANY_SHAPES


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
            self.scores, self.context, query, key, value, Causal() if is_causal else attn_mask,
            dropout_p, scale, weighs=False,
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
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask: pass attn_mask too")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._project(query, key, value)
        mask = self._mask(attn_mask, key_padding_mask, q, k.shape[1])
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], -1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], -1, -1)], 1)
        q, k, v = (x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        if self.add_zero_attn:
            k = torch.cat([k, k.new_zeros(*k.shape[:2], 1, k.shape[3])], 2)
            v = torch.cat([v, v.new_zeros(*v.shape[:2], 1, v.shape[3])], 2)
        if mask is not None:  # learned and zero keys are appended and always visible
            mask = F.pad(mask, (0, k.shape[2] - mask.shape[-1]))
        dropout = self.dropout if self.training else 0.0
        output, weights, lost = attend(
            self.scores, self.context, q, k, v, mask, dropout, None,
            unseeing="nan" if need_weights else "zero", weighs=need_weights,
        )  # fmt: skip
        output = self.out_proj(output.transpose(1, 2).flatten(2))
        if lost is not None:  # by one head is by all: the projection adds them
            lost_by_any = lost.any(1) if lost.dim() == 4 else lost
            output = lost_rows(output, lost_by_any)
        if weights is not None:
            weights = lost_rows(weights, lost)
            weights = weights.mean(1) if average_attn_weights else weights
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        output = output if self.batch_first else output.transpose(0, 1)
        return output, weights

    @property
    def _is_off(self) -> bool:
        """Whether torch's forward, which reads the output projection's weight, will do."""
        products = [self.q_proj, self.k_proj, self.v_proj, self.scores, self.context]
        projection = getattr(self.out_proj, "product", None)
        if isinstance(projection, QProduct):
            products.append(projection)
        return all(product.recipe.products_off for product in products)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        if self._qkv_same_embed_dim:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases: Any = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        products = (self.q_proj, self.k_proj, self.v_proj)
        return tuple(
            product(Linear(), x, weight, bias)
            for product, x, weight, bias in zip(
                products, (query, key, value), weights, biases, strict=True
            )
        )

    def _mask(
        self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, keys: int
    ) -> Tensor | None:
        """One additive mask, broadcastable to (batch, heads, queries, keys).  q: projected."""
        batch, queries = q.shape[:2]
        total: Tensor | None = None
        for name, mask, allowed in (
            ("attn_mask", attn_mask, [(queries, keys), (batch * self.num_heads, queries, keys)]),
            ("key_padding_mask", padding, [(batch, keys)]),
        ):
            if mask is None:
                continue
            if tuple(mask.shape) not in allowed:
                raise ValueError(
                    f"layer {self.scores.name!r}: {name} has shape {tuple(mask.shape)}, need "
                    f"{' or '.join(map(str, allowed))}"
                )
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, float("-inf"))
            elif not mask.is_floating_point():
                raise TypeError(
                    f"layer {self.scores.name!r}: {name} is {mask.dtype}, need bool (True: hidden) "
                    f"or floating point (added)"
                )
            if name == "key_padding_mask":
                mask = mask[:, None, None, :]
            elif mask.dim() == 3:
                mask = mask.unflatten(0, (-1, self.num_heads))
            total = mask if total is None else total + mask
        return total

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
