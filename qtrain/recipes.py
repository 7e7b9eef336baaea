"""The named recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Literal

from quantizers import (
    OFF,
    FloatFormat,
    IntFormat,
    Quantizer,
    QuantizerLike,
    RealOffset,
    absmax,
    chunked_minmax,
    ema,
    formats,
    minmax,
    per_channel,
    stochastic,
)
from quantizers import bf16 as bf16_format
from quantizers import fp16 as fp16_format
from quantizers.checks import suggestion

from . import checks
from .norms import deviations
from .norms.recipe import NormRecipe
from .recipe import Recipe
from .slots import Forward, GradInput, GradWeight


def _unscaled(fmt: FloatFormat) -> Quantizer:
    return Quantizer(format=fmt, range=None)


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
        grad_weight=GradWeight(grad_output=_unscaled(bf16_format), unit=unit),
        with_bits=partial(int8, unit=unit),
    )


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
    )


def fp32() -> Recipe:
    """Everything off: the model computes exactly what it did before."""
    return Recipe(name="fp32")


def _half(name: str, fmt: FloatFormat) -> Recipe:
    operand = _unscaled(fmt)
    return Recipe(
        name=name,
        forward=Forward(input=operand, weight=operand),
        grad_input=GradInput(grad_output=operand),
        grad_weight=GradWeight(grad_output=operand),
        activation=fmt,
    )


def bf16() -> Recipe:
    """bf16 operands in all three products, fp32 accumulation, bf16 outputs."""
    return _half("bf16", bf16_format)


def fp16() -> Recipe:
    """fp16 operands in all three products, fp32 accumulation, fp16 outputs; overflow gives inf
    (train it with a GradScaler, as real fp16)."""
    return _half("fp16", fp16_format)


_NAMED: dict[str, Callable[[], Recipe]] = {
    made.__name__: made for made in (int8, banner2018, fp32, bf16, fp16)
}


def names() -> list[str]:
    """The registered recipes' names."""
    return list(_NAMED)


def takes_bits(name: str) -> bool:
    """Whether the named recipe takes bits=."""
    return _made(name).with_bits is not None


def hint(name: object, known: Iterable[str]) -> str:
    """What to give in place of a name that no recipe has: "; did you mean ...?" and the like, or
    nothing.  known: the names that there are."""
    if not isinstance(name, str) or name.lower() not in formats.NAMED:
        return suggestion(name, known)
    number_format = formats.get(name.lower())
    if isinstance(number_format, IntFormat) and number_format.signed:
        bits = number_format.bits
        return (
            f"; did you mean 'int8' at {bits} bits? quantize(model, {bits}), recipes.int8({bits}), "
            f"--bits {bits} in the shell"
        )
    return f"; that is a number format: Quantizer(format={name.lower()!r}) is one of a Recipe"


def _made(name: str) -> Recipe:
    if not isinstance(name, str) or name not in _NAMED:
        near = hint(name, _NAMED)
        raise ValueError(
            f"unknown recipe {checks.shown(name)}{near}; known: {', '.join(_NAMED)}; any other is "
            f"a Recipe of your own, of quantizers such as Quantizer(format=e4m3)"
        )
    return _NAMED[name]()


def get(name: str, bits: int | None = None) -> Recipe:
    """The named recipe, at `bits` bits where it takes them.

    Raises ValueError for an unknown name (the nearest is suggested), for bits it does not take or
    that are not from 2 to 16; TypeError for bits that are no integer.
    """
    recipe = _made(name)
    return recipe if bits is None else recipe.at(bits)
