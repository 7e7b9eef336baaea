"""Recipes whose scales are trained with the network."""

from __future__ import annotations

from functools import partial

from quantizers import LSQ, IntFormat

from ..recipe import Forward, Recipe


def lsq(bits: int = 4, *, signed_inputs: bool = True) -> Recipe:
    """LSQ: weights and inputs of few bits in steps that are learned; gradients in full precision.

    Esser et al. 2020, "Learned Step Size Quantization", arXiv 1902.08153; see `quantizers.LSQ`.
    Behind ReLUs give signed_inputs=False, as the paper does: 0 .. 2^b - 1.  The paper fine-tunes a
    trained network, and keeps the first and the last layer at 8 bits:
    overrides={"conv1": recipes.lsq(8), "fc": recipes.lsq(8)}.  The optimizer must be built behind
    `quantize`, whose layers own the steps.
    """
    signed = IntFormat(bits, symmetric=False)
    inputs = signed if signed_inputs else IntFormat(bits, signed=False)
    return Recipe(
        name="lsq",
        forward=Forward(input=LSQ(format=inputs, scaled_by="sample"), weight=LSQ(format=signed)),
        with_bits=partial(lsq, signed_inputs=signed_inputs),
        source="arXiv 1902.08153",
        leaves_out="8 bits in the first and last layers; fine-tuning of a trained network",
        when="inference in 2 to 4 bits; fine-tuning",
    )
