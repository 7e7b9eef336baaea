"""Logarithmic unbiased quantization."""

from __future__ import annotations

from quantizers import IntFormat, Quantizer, e3m0, stochastic

from ..recipe import Forward, GradInput, GradWeight, Recipe


def luq() -> Recipe:
    """LUQ: int4 forward, gradients in FP4 [1, 3, 0] (0 and seven powers of two), unbiased.

    Chmiel, Banner, Hoffer, Ben Yaacov, Soudry 2021, arXiv 2112.10769 (ICLR 2023, "Accurate Neural
    Training with 4-bit Matrix Multiplications at Standard Formats").  Between two powers of two it
    rounds up with the probability of the distance from the lower one, below the smallest to it or 0
    likewise ("stochastic underflow"): linear stochastic rounding onto e3m0.  The largest magnitude
    is the tensor's own, so that nothing is clipped.  Left out: the clip of the forward's operands
    by SAWB (theirs is amax here), the average over several samples (SMP), a maximum of the step
    before (hindsight), the last epochs in high precision (FNT).
    """
    forward = Quantizer(format=IntFormat(4))
    gradient = Quantizer(format=e3m0, rounding=stochastic())
    return Recipe(
        name="luq",
        forward=Forward(input=forward, weight=forward),
        grad_input=GradInput(grad_output=gradient),
        grad_weight=GradWeight(grad_output=gradient),
        source="arXiv 2112.10769",
        leaves_out="SAWB's clip of inputs and weights (amax instead); SMP; fine-tuning at the end",
        when="4 bits, a scale a tensor; gradients by shifts",
    )
