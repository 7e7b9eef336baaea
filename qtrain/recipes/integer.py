"""Eight-bit integers with other scales than the house default's."""

from __future__ import annotations

from dataclasses import replace

from quantizers import (
    IntFormat,
    Quantizer,
    RealOffset,
    Scale,
    blocks,
    ema,
    int8,
    minmax,
    per_sample,
    stochastic,
)
from quantizers import bf16 as bf16_format

from ..recipe import Forward, GradInput, GradWeight, Recipe
from .baselines import unscaled
from .clipping import stochastically


def switchback() -> Recipe:
    """SwitchBack: int8 for the output and grad_input, 16 bits for grad_weight.

    Wortsman et al. 2023, arXiv 2304.13013; bitsandbytes at 1273a5d,
    nn/triton_based_modules.py (_switchback_global): inputs and gradients by rows, weights by
    tensor, scales amax / 127, nearest; grad_weight from the unquantized tensors in the caller's
    16-bit dtype, here bf16.  A convolution's rows are a position's channels.
    """
    rows, wide = Quantizer(format=int8, granularity=blocks(None)), unscaled(bf16_format)
    return Recipe(
        name="switchback",
        forward=Forward(input=rows, weight=Quantizer(format=int8)),
        grad_input=GradInput(grad_output=rows),
        grad_weight=GradWeight(grad_output=wide, input=wide),
        source="arXiv 2304.13013; bitsandbytes nn/triton_based_modules.py",
        leaves_out="",
        when="int8 where batches are large and grad_weight's sum long",
    )


def jetfire() -> Recipe:
    """Jetfire: int8 in blocks of 32 x 32, gradients stochastic, and int8 between layers.

    Xi et al. 2024, arXiv 2403.12422; thu-ml/Jetfire-INT8Training,
    Jetfire/Nonlinear/quantize.py (scale amax / 127 by division), Jetfire/Linear/linear_fwd.py (what
    a linear layer hands on are int8 blocks) and INT8_GPT2/qmodel.py (gradients stochastic, all else
    nearest; residual sums in full precision).  Left out: int8 norms and GELUs, and gradients that
    flow between layers as int8 blocks; scales stored in fp16.  The two backward products draw their
    own noise, where Jetfire's share one quantized gradient.  Jetfire's attention is not quantized:
    override its products with None.
    """
    operand = Quantizer(format=int8, granularity=blocks(32, 32))
    gradient = replace(operand, rounding=stochastic())
    return Recipe(
        name="jetfire",
        forward=Forward(input=operand, weight=operand),
        grad_input=GradInput(grad_output=gradient),
        grad_weight=GradWeight(grad_output=gradient),
        activation=operand,
        source="arXiv 2403.12422; thu-ml/Jetfire-INT8Training Jetfire/Nonlinear/quantize.py",
        leaves_out="int8 norms and GELUs, gradients between layers; fp16 scales",
        when="Transformers on integer units",
    )


def statquant() -> Recipe:
    """StatQuant's per-sample quantizer (PSQ): 8 bits between the least and the greatest value, of
    each sample for the gradient of grad_input, stochastic.

    Chen, Gai, Yao, Mahoney, Gonzalez 2020, arXiv 2010.14298; cjf00000/StatQuant at 8cde082,
    image_classification/quantize.py and preconditioner.py (8 bits each by default; the gradient
    taken twice, as in Banner et al. 2018).  Inputs and that gradient need no exact zero
    (ScalarPreconditionerAct, DiagonalPreconditioner: `RealOffset`, so that products run in fp32);
    weights and grad_weight's copy, which has one range for all, have it (ScalarPreconditioner).
    Left out: the block Householder quantizer; that code's ranges of grad_weight's copy over samples
    and its ends moved by 1e-8.
    """
    weight = Quantizer(format=IntFormat(8, signed=False, symmetric=False), range=minmax)
    copy = replace(weight, rounding=stochastic())
    own = RealOffset(replace(copy, granularity=per_sample))
    return Recipe(
        name="statquant",
        forward=Forward(input=RealOffset(weight), weight=weight),
        grad_input=GradInput(grad_output=own),
        grad_weight=GradWeight(grad_output=copy),
        source="arXiv 2010.14298; cjf00000/StatQuant image_classification/preconditioner.py",
        leaves_out="block Householder; grad_weight's ranges over samples",
        when="integers where few samples have large gradients",
    )


def in_hindsight(*, momentum: float = 0.1) -> Recipe:
    """In-hindsight ranges: affine 8 bits, inputs and gradients over the running range of the steps
    before, which is known before the tensor is; gradients stochastic.

    Fournarakis and Nagel 2021, "In-Hindsight Quantization Range Estimation for Quantized Training",
    arXiv 2105.04246: minima and maxima of earlier steps averaged with weight 1 - momentum (eta
    there), those of the tensor itself at the first; weights have their own range.  What lies beyond
    saturates.  The two backward products keep a range and draw noise each, where one quantized
    gradient serves both there.
    """
    weight = Quantizer(format=IntFormat(8, signed=False, symmetric=False), range=minmax)
    before = replace(weight, range=ema(minmax, momentum, use="previous"))
    gradient = replace(before, rounding=stochastic())
    return Recipe(
        name="in-hindsight",
        forward=Forward(input=before, weight=weight),
        grad_input=GradInput(grad_output=gradient),
        grad_weight=GradWeight(grad_output=gradient),
        source="arXiv 2105.04246",
        leaves_out="one quantized gradient for both backward products",
        when="integers on hardware that must know a range before the tensor",
    )


def unified_int8() -> Recipe:
    """Unified INT8: int8 by tensor, gradients stochastic and clipped where the angle between them
    and their quantized values is the smallest (direction sensitive gradient clipping).

    Zhu et al. 2019, "Towards Unified INT8 Training for Convolutional Neural Network", arXiv
    1912.12607: the deviation is 1 - the cosine of that angle.  Here the clip is one of nine, from
    the maximum to 1/16 of it by factors of sqrt(2), tried at every step.  Left out: the learning
    rate times max(exp(-20 d), 0.1) for a deviation d (deviation counteractive scaling).
    """
    tensor = Quantizer(format=int8)
    clips = tuple(127 * 2 ** (step / 2) for step in range(9))
    gradient = stochastically(replace(tensor, scale=Scale(candidates=clips, by="cosine")))
    return Recipe(
        name="unified-int8",
        forward=Forward(input=tensor, weight=tensor),
        grad_input=GradInput(grad_output=gradient),
        grad_weight=GradWeight(grad_output=gradient),
        source="arXiv 1912.12607",
        leaves_out="learning rates by the deviation; a clip is one of nine",
        when="convolutional networks on integer units, gradients with outliers",
    )
