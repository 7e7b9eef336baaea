"""Hybrid block floating point: integers that share an exponent."""

from __future__ import annotations

from quantizers import IntFormat, Quantizer, Scale, blocks, e8m0

from ..recipe import Forward, GradInput, GradWeight, Recipe
from .clipping import stochastically


def _hbfp(bits: int, when: str) -> Recipe:
    scale = Scale(e8m0, rule="rceil", top=2.0 ** (bits - 1))
    operand = stochastically(Quantizer(format=IntFormat(bits), granularity=blocks(64), scale=scale))
    return Recipe(
        name=f"hbfp{bits}",
        forward=Forward(input=operand, weight=operand),
        grad_input=GradInput(grad_output=operand),
        grad_weight=GradWeight(grad_output=operand),
        source="arXiv 2211.10737; simlaharma/HBFPEmulator_AB bfp/bfp_ops.py",
        leaves_out="15-bit weights in the optimizer; rounding up to the power is clipped",
        when=when,
    )


def hbfp4() -> Recipe:
    """HBFP4: int4 (a sign and 3 bits) in blocks of 64 with a common exponent, stochastic.

    Drumond et al. 2018, "Training DNNs with Hybrid Block Floating Point"; Harma et al. 2022,
    "Accuracy Booster", arXiv 2211.10737, whose public code is simlaharma/HBFPEmulator_AB:
    bfp/bfp_ops.py has steps of 2^(ceil(log2 amax) - 3) and elements clamped to +-7 (_float_to_bfp),
    imagenet_booster.sh stochastic rounding of all.  What rounds up to the power of two above amax
    is clipped, so that the largest elements are biased.  Left out: weights of 15 bits in the
    optimizer, blocks along the last axis that are cut once (each product cuts its own along its
    sum, as block hardware does), exponents of more than 8 bits.

    Accuracy Booster is this with HBFP6 in the last epoch and in the first and last layers:

        schedule = Schedule({0.0: "hbfp4", 1 - 1 / epochs: "hbfp6"})
        quantize(model, recipe=schedule, overrides={"conv1": "hbfp6", "fc": "hbfp6"})
    """
    return _hbfp(4, "block floating point; with hbfp6 at the end: Accuracy Booster")


def hbfp6() -> Recipe:
    """HBFP6: int6 in blocks of 64 with a common exponent, stochastic.  See `hbfp4`."""
    return _hbfp(6, "block floating point with room; the end of an Accuracy Booster run")
