"""Recipes whose point is what sums their products."""

from __future__ import annotations

from quantizers import FloatFormat, e5m2, toward_zero
from quantizers.accumulators import sequential

from ..recipe import Forward, GradInput, GradWeight, Recipe
from .baselines import unscaled


def ibm_fp8() -> Recipe:
    """IBM's FP8: operands in 1-5-2 without scales, sums in 16 bits, 1-6-9, in chunks of 64.

    Wang, Choi, Brand, Chen, Gopalakrishnan 2018, "Training Deep Neural Networks with 8-bit Floating
    Point Numbers", arXiv 1812.08011 (2.2, 2.3): products are exact, every addition is rounded to
    nearest, within a chunk and between chunks.  Gradients below 2^-17 vanish and those beyond 57344
    are infinite: train it with a GradScaler, as the paper scales its loss by 1000.  Left out: the
    update of 1-6-9 weights with stochastic rounding, images and the last layer in 1-6-9
    (`overrides`).
    """
    operand, sums = unscaled(e5m2), sequential(FloatFormat(6, 9), chunk=64)
    return Recipe(
        name="ibm-fp8",
        forward=Forward(input=operand, weight=operand, accumulator=sums),
        grad_input=GradInput(grad_output=operand, accumulator=sums),
        grad_weight=GradWeight(grad_output=operand, accumulator=sums),
        source="arXiv 1812.08011",
        leaves_out="16-bit weight updates; images and the last layer in 16 bits",
        when="what sums of 16 bits in chunks do; with a GradScaler",
    )


def lba() -> Recipe:
    """Lower bit-width accumulators: the forward's products and sums in 12 bits, M7E4, in chunks of
    16.

    Blumenfeld, Hubara, Soudry 2024, "Towards Cheaper Inference in Deep Networks with Lower
    Bit-Width Accumulators", arXiv 2401.14110 (ICLR 2024), section 3: each product and each addition
    is rounded toward 0 and saturates, exponents have biases of 12 (products) and 10 (sums).
    Operands are in full precision, the paper's other choice being FP8; gradients pass as if sums
    were exact.  Left out: what lies below the smallest normal number becomes 0 there, and is
    subnormal here; FP8 operands; the fine-tuning in two stages; finer gradients, for sums of fewer
    bits.
    """
    product, sums = (FloatFormat(4, 7, bias=bias, specials="finite") for bias in (12, 10))
    rounded = sequential(sums, product=product, rounding=toward_zero, chunk=16)
    return Recipe(
        name="lba",
        forward=Forward(accumulator=rounded),
        source="arXiv 2401.14110",
        leaves_out="flushing of subnormal sums; FP8 operands; fine-tuning in two stages",
        when="fine-tuning for accelerators whose sums have 12 bits",
    )
