"""A quantizer that turns bad at a known training step, and how to plant it in a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from qtrain.layers import products_of
from qtrain.recorder import OPERANDS
from quantizers import Format, QTensor, Quantizer, floor, random_bits
from quantizers.ranges import Ema, RangeRule, State

Kind = Literal["clip", "floor", "freeze", "share", "nan"]
SLOTS = {role: slot for slot, role in OPERANDS.items()}


class Fault:
    """`inner` until `start` training calls have passed; then it

    clip     clips at half of the tensor's extremes
    floor    rounds down
    freeze   keeps the extremes of its last good call
    share    rounds every row with the same noise
    nan      returns NaN (float formats)
    """

    def __init__(self, inner: Quantizer, kind: Kind, start: int) -> None:
        self.inner, self.kind, self.start = inner, kind, start

    @property
    def format(self) -> Format:
        return self.inner.format

    def init_state(self, shape: object) -> State:
        return {"calls": torch.zeros((), dtype=torch.int64), "ends": torch.zeros(2)}

    def __call__(
        self,
        x: Tensor,
        *,
        state: State | None = None,
        key: Tensor | None = None,
        training: bool = True,
    ) -> QTensor:
        assert state is not None
        done = int(state["calls"])
        state["calls"] += 1
        if done < self.start:
            state["ends"].copy_(torch.stack([x.min(), x.max()]))
            return self._good(x, key)
        if self.kind == "clip":
            return self._good(x.clamp(x.min() / 2, x.max() / 2), key)
        if self.kind == "freeze":
            return self._good(x.clamp(*state["ends"].tolist()), key)
        if self.kind == "floor":
            return replace(self.inner, range=self._rule, rounding=floor)(x)
        q = self._good(x, key)
        if self.kind == "nan":
            return q._replace(elements=q.elements * torch.nan)
        assert key is not None and q.scale is not None
        noise = random_bits(key, x.shape[1:]).double() / 2**32 % 1
        codes = (x / q.scale + noise).floor().clamp(q.format.low, q.format.high)
        return q._replace(elements=codes.to(q.elements.dtype))

    @property
    def _rule(self) -> RangeRule | None:
        return self.inner.range.rule if isinstance(self.inner.range, Ema) else self.inner.range

    def _good(self, x: Tensor, key: Tensor | None) -> QTensor:
        return replace(self.inner, range=self._rule)(x, key=key)


def plant_(model: nn.Module, layer: str, role: str, kind: Kind, start: int) -> None:
    """Put a fault into a converted model, in place, before its first step."""
    kind_of_product, operand = SLOTS[role]
    (product,) = (p for p in products_of(model) if p.name == layer)
    own = getattr(product.recipe, kind_of_product)
    fault = Fault(getattr(own, operand), kind, start)
    recipe = replace(product.recipe, **{kind_of_product: replace(own, **{operand: fault})})
    for key in list(product._buffers):
        if key.startswith(f"{kind_of_product}_{operand}_"):
            del product._buffers[key]
    names = {}
    for key, value in fault.init_state(()).items():
        names[key] = f"{kind_of_product}_{operand}_{key}"
        product.register_buffer(names[key], value)
    product._slots[kind_of_product, operand] = names
    product.recipe, product.noisy = recipe, True
