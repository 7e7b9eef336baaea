"""FP8: e4m3 and e5m2 with fp32 scales."""

from __future__ import annotations

from dataclasses import replace

from quantizers import (
    FloatFormat,
    Quantizer,
    Scale,
    absmax,
    accumulators,
    bf16,
    blocks,
    e4m3,
    e5m2,
    history,
)  # fmt: skip

from ..recipe import Forward, GradInput, GradWeight, Recipe
from .baselines import unscaled

#: S = min(fl(largest / amax), M), elements round(fl(x * S))
_BY_RECIPROCAL = Scale(reciprocal=True)


def fp8() -> Recipe:
    """FP8 with current scaling: e4m3 inputs and weights, e5m2 gradients, a scale for each tensor
    from its own maximum.

    TransformerEngine's Float8CurrentScaling with its defaults (common/recipe/__init__.py: format
    HYBRID, scales that are no powers of two, amax_epsilon 0); formats: Micikevicius et al. 2022,
    arXiv 2209.05433.  Left out: the FP8 units' accumulators (of 14 bits on Hopper).
    """
    forward = Quantizer(format=e4m3, scale=_BY_RECIPROCAL)
    gradient = Quantizer(format=e5m2, scale=_BY_RECIPROCAL)
    return Recipe(
        name="fp8",
        forward=Forward(input=forward, weight=forward),
        grad_input=GradInput(grad_output=gradient),
        grad_weight=GradWeight(grad_output=gradient),
        source="TransformerEngine Float8CurrentScaling; arXiv 2209.05433",
        leaves_out="accumulators of the FP8 units",
        when="Ada and Hopper; the simplest FP8",
    )


def fp8_delayed() -> Recipe:
    """FP8 with delayed scaling: as `fp8`, each tensor under the largest maximum of the 1024 steps
    before it; what lies beyond saturates.

    TransformerEngine's DelayedScaling with its defaults (common/recipe/__init__.py: format HYBRID,
    amax_history_len 1024, amax_compute_algo max, margin 0); Micikevicius et al. 2022, arXiv
    2209.05433.  The first step, which has no history, takes the tensor's own maximum, where
    TransformerEngine takes scale 1.  Left out: the FP8 units' accumulators, maxima shared between
    ranks.
    """
    current, past = fp8(), history(1024, "max", absmax)
    forward, gradient = (
        replace(q, range=past)  # type: ignore[type-var]
        for q in (current.forward.input, current.grad_input.grad_output)
    )
    return Recipe(
        name="fp8-delayed",
        forward=Forward(input=forward, weight=forward),
        grad_input=GradInput(grad_output=gradient),
        grad_weight=GradWeight(grad_output=gradient),
        source="TransformerEngine DelayedScaling; arXiv 2209.05433",
        leaves_out="accumulators of the FP8 units; maxima over all ranks; scale 1 at first",
        when="where a second pass over a tensor for its maximum costs too much",
    )


def deepseek_v3() -> Recipe:
    """DeepSeek-V3: e4m3 everywhere, blocks of 128 along the sum, weights in tiles of 128 x 128,
    fp32 scales amax / 448, sums of Hopper's units, promoted to fp32 every 128 terms.

    DeepSeek-AI 2024, arXiv 2412.19437, 3.3.2; inference/kernel.py of deepseek-ai/DeepSeek-V3
    (act_quant, weight_quant).  The input of grad_weight is cut anew, along its tokens, from the
    forward's 1 x 128 values, which are what is kept (3.5.2).  The H800 sums as an H100; each block
    is one promotion (3.3.2).  Left out: the E5M6 inputs behind attention and the scales of powers
    of two there, bf16 optimizer moments.  Its layers in higher precision (embedding, output head,
    norms, attention's products) are for `overrides`.
    """
    operand = Quantizer(format=e4m3, granularity=blocks(128))
    weight = Quantizer(format=e4m3, granularity=blocks(128, 128))
    sums = accumulators.get("H100", e4m3, promote=128)
    return Recipe(
        name="deepseek-v3",
        forward=Forward(input=operand, weight=weight, accumulator=sums),
        grad_input=GradInput(grad_output=operand, accumulator=sums),
        grad_weight=GradWeight(
            grad_output=operand, input=operand, source="forward", accumulator=sums
        ),
        source="arXiv 2412.19437, 3.3.2 and 3.5.2; deepseek-ai/DeepSeek-V3 inference/kernel.py",
        leaves_out="E5M6 behind attention; bf16 moments",
        when="large Transformers on Hopper; outliers",
    )


def coat() -> Recipe:
    """COAT: fp8 with a scale a tensor, and what layers hand on to norms and activations in e4m3,
    groups of 16 features under bf16 scales.

    Xi et al. 2024, arXiv 2410.19313; NVlabs/COAT at 80ec99f, coat/utils/_fp8_quantization_config.py
    (formats, group_size 16) and coat/activation/real_quantization: _quantize_pertensor.py (scale
    amax / largest by division, in bf16; those of weights, _division_transpose.py, are not rounded),
    linear.py and models/coat_llama.py (gradients to nearest; outputs of gate and up projections in
    groups).  Its other half are moments in fp8 with their range expanded: the update "adam-coat"
    (`low_precision_`, `--update`).  Left out: groups of residual sums and of gradients into
    activations, 1e-10 added to amax; outputs that attention or a residual sum takes are in groups
    too, where COAT keeps bf16 (for `overrides`, as are attention's products); elements of a group
    are divided by its scale as it is stored, not before.
    """
    forward = Quantizer(format=e4m3, scale=Scale(bf16))
    gradient = replace(forward, format=e5m2)
    return Recipe(
        name="coat",
        forward=Forward(input=forward, weight=Quantizer(format=e4m3)),
        grad_input=GradInput(grad_output=gradient),
        grad_weight=GradWeight(grad_output=gradient),
        activation=replace(forward, granularity=blocks(16)),
        source="arXiv 2410.19313; NVlabs/COAT coat/activation/real_quantization",
        leaves_out="accumulators of the FP8 units; FP8 moments (update adam-coat); "
        "sums and gradients in groups",
        when="FP8 where saved activations fill the memory; with the update adam-coat",
    )


def hfp8() -> Recipe:
    """HFP8: hybrid FP8 without scales, inputs and weights in 1-4-3 to 30, gradients in 1-5-2.

    Sun et al. 2019, "Hybrid 8-bit Floating Point (HFP8) Training and Inference for Deep Neural
    Networks", NeurIPS.  The 1-4-3 has bias 11, no infinity and no NaN beside 0, as MLIR's
    Float8E4M3B11FNUZType has it from that paper.  Gradients below 2^-17 vanish and those beyond
    57344 are infinite: train it with a GradScaler, as the paper scales its loss.  Left out:
    accumulators of 16 bits in chunks (of Wang et al. 2018, arXiv 1812.08011), 16-bit weights in the
    update, the first and last layers in 16 bits (`overrides`); subnormal numbers are kept.
    """
    forward = unscaled(FloatFormat(4, 3, bias=11, specials="finite", name="e4m3b11"))
    gradient = unscaled(e5m2)
    return Recipe(
        name="hfp8",
        forward=Forward(input=forward, weight=forward),
        grad_input=GradInput(grad_output=gradient),
        grad_weight=GradWeight(grad_output=gradient),
        source="Sun et al. 2019, NeurIPS; MLIR Float8E4M3B11FNUZType",
        leaves_out="16-bit accumulators in chunks; 16-bit weight updates",
        when="FP8 without scales; with a GradScaler",
    )
