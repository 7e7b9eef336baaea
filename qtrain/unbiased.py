"""What healthy rounding in the same format would do: without clipping, without bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from quantizers import (
    Format,
    IntFormat,
    Off,
    QTensor,
    Quantizer,
    QuantizerLike,
    absmax,
    ceil,
    floor,
    minmax,
    per_block,
    per_tensor,
    stochastic,
)
from quantizers.noise import root_key
from quantizers.ranges import State

from .layers import products_of
from .recipe import SLOTS, Recipe


def whole_range(quantizer: QuantizerLike, q: QTensor) -> Quantizer:
    """The quantizer of the same format, granules and scale format whose range is that of the whole
    tensor at hand, nothing clipped.

    q    what `quantizer` made of the tensor, not unquantized: it says the format and granules of a
         quantizer that is not ours
    """
    if type(quantizer) is not Quantizer:
        assert q.format is not None
        cut = {
            axis: size
            for axis, (size, whole) in enumerate(zip(q.block, q.elements.shape, strict=True))
            if size < whole
        }
        granularity = per_block(cut, rest="whole") if cut and q.scale is not None else per_tensor
        range_ = None if q.scale is None else absmax
        quantizer = Quantizer(format=q.format, granularity=granularity, range=range_)
    affine = isinstance(quantizer.format, IntFormat) and not quantizer.format.symmetric
    rule = None if quantizer.range is None else minmax if affine else absmax
    return replace(quantizer, range=rule, straight_through="identity")


def neighbours(quantizer: QuantizerLike, x: Tensor, q: QTensor) -> tuple[QTensor, QTensor]:
    """The two values of `whole_range` between which each element of x lies: (lower, upper)."""
    whole = whole_range(quantizer, q)
    return replace(whole, rounding=floor)(x), replace(whole, rounding=ceil)(x)


class Unbiased:
    """Quantizes as `whole_range` of another quantizer, with the expectation x.

    Where the other rounds stochastically, anew in every step, so does this.  Where it does not, the
    thresholds are random but stay the same from step to step, as those of nearest rounding do: the
    error of a weight that hardly changes then stays as well.  Gradients pass straight through.
    """

    def __init__(self, other: QuantizerLike, key: Tensor) -> None:
        self._other, self._key = other, key

    @property
    def format(self) -> Format | None:
        """The other's, where it says."""
        return getattr(self._other, "format", None)

    def __call__(
        self,
        x: Tensor,
        *,
        state: State | None = None,
        key: Tensor | None = None,
        training: bool = True,
    ) -> QTensor:
        own, other = self._key.to(x.device), self._other
        if type(other) is Quantizer:
            fresh = other.rounding.random_bits > 0
            quantizer = whole_range(other, QTensor(x))
        else:
            seen = {name: value.clone() for name, value in (state or {}).items()}
            q = other(x, state=seen, key=own if key is None else key, training=training)
            if q.format is None:
                return q
            fresh = False
            block = q.block or tuple(max(size, 1) for size in x.shape)
            quantizer = whole_range(other, q._replace(block=block))
        if not fresh:
            quantizer = replace(quantizer, rounding=stochastic())
        return quantizer(x, key=key if fresh else own)


def make_unbiased_(model: nn.Module, seed: int) -> None:
    """Give every product of the model, in place, unbiased quantizers; what rounds its output stays.

    seed: of the thresholds that stay
    """
    for number, product in enumerate(products_of(model)):
        product.recipe = _unbiased(product.recipe, (seed, number))


def _unbiased(recipe: Recipe, seed: Sequence[int]) -> Recipe:
    changed: dict[str, Any] = {}
    for number, (kind, operand) in enumerate(SLOTS):
        own = getattr(getattr(recipe, kind), operand)
        if kind != "forward" and operand != "grad_output" and recipe.reuses(kind, operand):
            own = None  # also where it is an equal quantizer
        elif not isinstance(own, Off):
            own = Unbiased(own, root_key(*seed, number))
        changed[kind] = replace(changed.get(kind, getattr(recipe, kind)), **{operand: own})
    return replace(recipe, **changed)
