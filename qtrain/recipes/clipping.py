"""Scales that clip what is rounded stochastically, where a published recipe has them."""

from __future__ import annotations

import warnings
from dataclasses import replace

from quantizers import ClippingScaleWarning, Quantizer, stochastic


def stochastically(quantizer: Quantizer, random_bits: int = 23) -> Quantizer:
    """The quantizer with stochastic rounding, and without the warning that its scale clips: who
    takes a recipe by name did not choose it, and `leaves_out` or its docstring says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClippingScaleWarning)
        return replace(quantizer, rounding=stochastic(random_bits))
