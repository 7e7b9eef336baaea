"""A weight that one forward of a layer multiplies many times, quantized once."""

from __future__ import annotations

from quantizers import Off, QTensor, Quantizer
from quantizers.ranges.rules import State

from ..recipe.slots import Slot

#: What the calls of one forward, and their backward passes, made of the weight, by product.
Held = dict[str, QTensor]


def repeats(slot: Slot, state: State) -> bool:
    """Whether every call makes the same of the same weight.

    So does a quantizer of ours that draws no noise and keeps no state, in a product whose transform
    draws no signs; others are asked at every call.
    """
    drawn = slot.noisy or getattr(slot.transform, "noisy", False)
    return not drawn and not state and type(slot.quantizer) in (Quantizer, Off)
