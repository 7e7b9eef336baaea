"""nn.Embedding and nn.EmbeddingBag under a recipe: rows of a quantized table, whose gradient is
quantized before it is added into them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from quantizers import Off, QTensor, QuantizerLike, fold
from quantizers.devices.numbers import in_dtype
from quantizers.protocol import needs_key, quantized, straight_through
from quantizers.ranges.rules import State

from ..autograd.contexts import without_autocast
from ..autograd.selective import hidden
from ..layer_state import rank
from ..norms.module import StraightThrough
from ..products.call import located
from ..products.probe import Probe
from ..products.watched import Shapes, Watched
from ..recipe import SLOTS, Lookup, Recipe

#: the operands that a lookup has of a product's, under whose names they are kept and shown
_TABLE, _GRADIENT = ("forward", "weight"), ("grad_weight", "grad_output")


class QLookup(Watched):
    """A lookup under a recipe: `lookup(weight, look_up, factors)`.

    weight    (rows, features), floating point
    look_up   torch's own, of such a table -> (*, features) in its dtype
    factors   per_sample_weights, or None
    """

    def __init__(self, recipe: Recipe, shapes: Shapes, **own: Any) -> None:
        lookup = recipe.lookup or Lookup()
        _, weight, output = shapes
        quantizers = {_TABLE: (lookup.weight, weight), _GRADIENT: (lookup.grad_output, output)}
        super().__init__(recipe, shapes, quantizers, **own)

    @property
    def is_off(self) -> bool:
        return self.recipe.lookup is None

    def forward(
        self,
        weight: Tensor,
        look_up: Callable[[Tensor], Tensor],
        factors: Tensor | None = None,
    ) -> Tensor:
        lookup = self.recipe.lookup
        assert lookup is not None
        self.check("weight", weight)
        probe = self.watching()
        with hidden(), without_autocast(weight.device.type):
            key, states = self.begin(weight, factors)
            # the same rows get the same noise on every rank, gradients their own
            number = SLOTS.index(_GRADIENT) + len(SLOTS) * (rank() + 1)
            common, own = (
                fold(key, n) if key is not None and needs_key(quantizer) else None
                for n, quantizer in (
                    (SLOTS.index(_TABLE), lookup.weight), (number, lookup.grad_output),
                )
            )  # fmt: skip
            table, state = weight, states.get(_TABLE, {})
            if not isinstance(lookup.weight, Off):
                x = weight.unsqueeze(0)
                with torch.no_grad():
                    q = self._quantized(_TABLE, lookup.weight, x, state, common, probe)
                    value = in_dtype(q.dequantize(), weight.dtype)
                if not straight_through(lookup.weight):  # its backward sees the state of now
                    state = {name: tensor.clone() for name, tensor in state.items()}
                table = StraightThrough.apply(x, value, lookup.weight, state).squeeze(0)  # type: ignore[no-untyped-call]
        output = look_up(table)
        if isinstance(lookup.grad_output, Off) or not output.requires_grad:
            return output
        quantize = partial(
            self._quantized, _GRADIENT, lookup.grad_output, state=states.get(_GRADIENT, {}),
            key=own, probe=probe,
        )  # fmt: skip
        passed: Tensor = _QuantizedGradient.apply(output, quantize)  # type: ignore[no-untyped-call]
        return passed

    def _quantized(
        self,
        slot: tuple[str, str],
        quantizer: QuantizerLike,
        x: Tensor,
        state: State,
        key: Tensor | None,
        probe: Probe | None,
    ) -> QTensor:
        kind, operand = slot
        try:
            q = quantized(quantizer, x, state=state, key=key, training=self.training)
        except (TypeError, ValueError) as error:
            raise located(error, f"layer {self.name!r}: {operand} of lookup") from error
        if probe is not None:
            probe.operand(kind, operand, x, q, False, slot == _GRADIENT)  # type: ignore[arg-type]
        return q


class _QuantizedGradient(torch.autograd.Function):
    """x, and the gradient, (*, features), quantized on its way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantize: Callable[[Tensor], QTensor]) -> Tensor:
        ctx.quantize = quantize
        return x.clone()  # a view could not be written into, as by ReLU(inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        with without_autocast(grad.device.type):
            q = ctx.quantize(grad if grad.dim() > 1 else grad.unsqueeze(0))
            return in_dtype(q.dequantize(), grad.dtype).view_as(grad), None


class _QTable(nn.Module):
    """What both kinds of table have."""

    lookup: QLookup

    @staticmethod
    def products(module: Any) -> dict[str, Shapes]:
        """The lookup: child name -> shapes, none of its input, of its table and of its output."""
        features = module.embedding_dim
        return {"lookup": ((), (1, module.num_embeddings, features), (None, features))}

    def __repr__(self) -> str:
        parts = filter(None, (self.extra_repr(), self.lookup.recipe.name))
        return f"{type(self).__name__}({'; '.join(parts)})"


class QEmbedding(_QTable, nn.Embedding):
    """torch.nn.Embedding that follows a recipe's `lookup`."""

    def forward(self, input: Tensor) -> Tensor:
        if self.lookup.is_off:
            return super().forward(input)
        rows: Tensor = self.lookup(
            self.weight,
            lambda table: F.embedding(
                input, table, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq
            ),
        )
        return rows


class QEmbeddingBag(_QTable, nn.EmbeddingBag):
    """torch.nn.EmbeddingBag that follows a recipe's `lookup`."""

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        if self.lookup.is_off:
            return super().forward(input, offsets, per_sample_weights)
        rows: Tensor = self.lookup(
            self.weight,
            lambda table: F.embedding_bag(
                input, table, offsets, scale_grad_by_freq=self.scale_grad_by_freq, mode=self.mode,
                per_sample_weights=per_sample_weights, include_last_offset=self.include_last_offset,
                padding_idx=self.padding_idx,
            ),
            per_sample_weights,
        )  # fmt: skip
        return rows


def left_lookup(module: nn.Embedding | nn.EmbeddingBag, lookup: Lookup | None) -> str | None:
    """Why a table cannot follow this, or None where it can."""
    if lookup is None:
        return (
            "a lookup, no product; kept in full precision; a recipe with lookup=Lookup(...) "
            "quantizes it"
        )
    if module.max_norm is not None:
        return "max_norm, by which its forward writes into the table; kept in full precision"
    if module.sparse:
        return "sparse=True, whose gradient is no dense tensor; kept in full precision"
    return None
