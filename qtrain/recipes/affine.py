"""Integers with zero points: the house default, and Banner et al. 2018."""

from __future__ import annotations

from functools import partial
from typing import Literal

from quantizers import (
    OFF,
    IntFormat,
    Quantizer,
    absmax,
    chunked_minmax,
    ema,
    minmax,
    per_channel,
    stochastic,
)
from quantizers import bf16 as bf16_format

from .. import checks
from ..norms import deviations
from ..norms.recipe import NormRecipe
from ..recipe import Recipe
from ..slots import Forward, GradInput, GradWeight
from .baselines import unscaled


def int8(bits: int = 8, *, unit: Literal["fp32", "bf16"] = "fp32") -> Recipe:
    """The house default: affine input, weight per output channel, stochastic layer gradient.

    In evaluation the input's range is frozen to its running value.  grad_weight takes a bf16 copy
    of the gradient (the bifurcation of Banner et al. 2018), at every width; unit "bf16" runs that
    product in bf16 units, see GradWeight, for inputs of at most 8 bits.
    """
    checks.integer("bits", bits, low=2, high=16)
    return Recipe(
        name="int8" if bits == 8 else f"int8 at {bits} bits",
        forward=Forward(
            input=Quantizer(
                format=IntFormat(bits, signed=False, symmetric=False),
                range=ema(minmax, momentum=0.1, train_on="batch"),
            ),
            weight=Quantizer(format=IntFormat(bits), granularity=per_channel()),
        ),
        grad_input=GradInput(
            grad_output=Quantizer(format=IntFormat(bits), range=absmax, rounding=stochastic())
        ),
        grad_weight=GradWeight(grad_output=unscaled(bf16_format), unit=unit),
        with_bits=partial(int8, unit=unit),
        source="this project; the bifurcation: Banner et al. 2018, arXiv 1805.11046",
        when="integer units; the default, at 2 to 16 bits",
    )


def banner2018(bits: int = 8, *, variant: Literal["paper", "code"] = "paper") -> Recipe:
    """Banner, Hubara, Hoffer, Soudry, "Scalable methods for 8-bit training", NeurIPS 2018.

    Inputs: affine, each sample's minimum and maximum averaged over the batch (clips by design).
    Weights: affine, per tensor.  Layer gradient: affine with an exact zero, stochastic, from the
    extreme minimum and maximum.  Range batch-norm with 8-bit input, scale and shift, the paper's
    constant.  "paper": grad_weight takes a 16-bit copy of the gradient, activations are rounded to
    nearest.  "code" deviates as the authors' code does: that copy is not quantized, inputs are
    rounded stochastically (an argument lands one slot off), the constant is the code's, with
    extrema averaged over 16 chunks.
    """
    checks.integer("bits", bits, low=2, high=16)
    checks.choice("variant", variant, ("paper", "code"))
    affine = IntFormat(bits, signed=False, symmetric=False)
    code = variant == "code"
    weight = Quantizer(format=affine, range=minmax)
    inputs = Quantizer(
        format=affine,
        range=ema(chunked_minmax(), momentum=0.1, train_on="batch"),
        rounding=stochastic() if code else weight.rounding,
    )
    wide = Quantizer(format=IntFormat(16), range=absmax, rounding=stochastic())

    return Recipe(
        name="banner2018" if bits == 8 else f"banner2018 at {bits} bits",
        forward=Forward(input=inputs, weight=weight),
        grad_input=GradInput(
            grad_output=Quantizer(format=affine, range=minmax, rounding=stochastic())
        ),
        grad_weight=GradWeight(grad_output=OFF if code else wide),
        norm=NormRecipe(
            deviation=deviations.range_(
                chunks=16 if code else 1, constant="code" if code else "paper"
            ),
            input=inputs,
            weight=weight,
            bias=weight,
        ),
        with_bits=partial(banner2018, variant=variant),
        source="Banner et al. 2018, arXiv 1805.11046",
        leaves_out="the 8-bit gradient inside the norm's backward",
        when="to reproduce the paper; convolutional networks with batch-norms",
    )
