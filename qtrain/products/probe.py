"""Who may look at a layer's products, and what is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from quantizers import QTensor

from ..recipe.units import Unit
from .operations import Kind, Operation


class Computed(NamedTuple):
    """One product of a layer, as a probe sees it.

    a, b       its operands before they were quantized (weight: canonical); b None where it has
               been changed in place since the forward
    operands   the two as they were multiplied; b keeps a scale that was folded into a
    bias       the forward's, or None
    result     what came out, in the dtype it was computed in
    dtype      the dtype in which the result is handed on
    handed     the forward's result as the recipe's activation quantized it, or None
    """

    operation: Operation
    kind: Kind
    a: Tensor
    b: Tensor | None
    operands: tuple[QTensor, QTensor]
    bias: Tensor | None
    result: Tensor
    dtype: torch.dtype
    handed: QTensor | None = None


class Probe:
    """Sees every quantization and every product of a layer, for inspection; one that overrides
    nothing passes over all of them.

    It changes none of their bits.
    """

    def watches(self, training: bool) -> bool:
        """Whether it is to see a call in this mode."""
        return True

    def operand(
        self, kind: Kind, operand: str, x: Tensor, q: QTensor, folded: bool, backward: bool
    ) -> None:
        """An operand before and after its quantizer; where blocks along the sum are cut, as
        matrices; folded: times the other operand's scale; backward: in the backward pass."""

    def result(self, product: Computed) -> None:
        """A product that was computed."""

    def engine(self, kind: Kind, name: str) -> None:
        """The engine that serves a product, or one block of it."""

    def summed(self, kind: Kind, unit: Unit, found: Tensor, by: Callable[..., Tensor]) -> None:
        """A product of quantized operands that a unit summed; by(other): the same by another, with
        bias=None without the forward's bias.  Of torch.float64 it is the sum in fp64, rounded once
        to fp32."""
