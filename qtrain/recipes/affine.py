"""Integers with zero points: the house default, and Banner et al. 2018."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

from quantizers import (
    OFF,
    IntFormat,
    Quantizer,
    QuantizerLike,
    RealOffset,
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
from ..recipe import Forward, GradInput, GradWeight, Recipe
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


_BANNER_FROM = {
    "paper": "arXiv 1805.11046",
    "code": "eladhoffer/quantized.pytorch, e09c447",
    "convnet": "eladhoffer/convNet.pytorch, ebec93d",
}
_BANNER_LACKS = {
    "paper": "",
    "code": "8-bit 1 / sigma of norms, 8-bit biases of layers",
    "convnet": "16-bit biases of layers",
}


def banner2018(
    bits: int = 8,
    *,
    variant: Literal["paper", "code", "convnet"] = "paper",
    weights: Literal["tensor", "channel"] | None = None,
) -> Recipe:
    """Banner, Hubara, Hoffer, Soudry, "Scalable methods for 8-bit training", NeurIPS 2018.

    Inputs: affine, each sample's minimum and maximum averaged over the batch (clips by design).
    Weights: affine.  Layer gradient: affine, stochastic, from the extreme minimum and maximum; the
    same for the gradient that enters a norm's backward.  Range batch-norm with an input, a scale
    and a shift of as few bits.

    variant   "paper" (arXiv 1805.11046), which leaves the last step of the weights' gradients alone
              in higher precision: grad_weight takes a 16-bit copy of the gradient; activations are
              rounded to nearest, 0 is exact, the range is one chunk's, with the paper's constant.
              "code": quantized.pytorch (e09c447), the paper's own repository: that copy is not
              quantized, 0 is not exact (`RealOffset`), inputs are rounded stochastically (an
              argument lands one slot off), extrema are averaged over 16 chunks, with the code's
              constant.  Left out: its 8-bit 1 / sigma and biases of layers.
              "convnet": convNet.pytorch (ebec93d), which that repository names as the newer one: as
              "code", but inputs are rounded to nearest, weights have a scale for each output
              channel, a norm's scale and shift are not quantized.  Left out: 16-bit biases.
    weights   "tensor" or "channel": what of a layer's weights shares a range; None: as the variant
              has it, "channel" in "convnet" and "tensor" in the others.
    """
    checks.integer("bits", bits, low=2, high=16)
    checks.choice("variant", variant, ("paper", "code", "convnet"))
    if weights is not None:
        checks.choice("weights", weights, ("tensor", "channel"))
    affine = Quantizer(format=IntFormat(bits, signed=False, symmetric=False), range=minmax)
    paper = variant == "paper"
    by_channel = (weights or ("channel" if variant == "convnet" else "tensor")) == "channel"
    weight = replace(affine, granularity=per_channel()) if by_channel else affine
    inputs = replace(affine, range=ema(chunked_minmax(), momentum=0.1, train_on="batch"))
    if variant == "code":
        inputs = replace(inputs, rounding=stochastic())
    gradient = replace(affine, rounding=stochastic())
    wide = Quantizer(format=IntFormat(16), range=absmax, rounding=stochastic())
    own: Callable[[Quantizer], QuantizerLike] = (lambda q: q) if paper else RealOffset
    parameter = OFF if variant == "convnet" else own(affine)

    return Recipe(
        name="banner2018" if bits == 8 else f"banner2018 at {bits} bits",
        forward=Forward(input=own(inputs), weight=own(weight)),
        grad_input=GradInput(grad_output=own(gradient)),
        grad_weight=GradWeight(grad_output=wide if paper else OFF),
        norm=NormRecipe(
            deviation=deviations.range_(1, "paper") if paper else deviations.range_(16, "code"),
            input=own(inputs),
            weight=parameter,
            bias=parameter,
            grad_output=own(gradient),
        ),
        with_bits=partial(banner2018, variant=variant, weights=weights),
        source=f"Banner et al. 2018, {_BANNER_FROM[variant]}",
        leaves_out=_BANNER_LACKS[variant],
        when="to reproduce the paper; convolutional networks with batch-norms",
    )
