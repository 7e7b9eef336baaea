"""NVFP4: e2m1 in blocks of 16 with e4m3 scales under one fp32 scale of the tensor."""

from __future__ import annotations

from dataclasses import replace

from quantizers import Quantizer, Scale, blocks, e2m1, e4m3, fp32, stochastic

from ..recipe import Forward, GradInput, GradWeight, Hadamard, Recipe, hadamard
from .clipping import stochastically

#: TransformerEngine's arithmetic: block scales up to 448, elements by reciprocals
_TWO_LEVELS = Scale(e4m3, over=Scale(fp32, top=448), reciprocal=True)
#: get_wgrad_sign_vector of TransformerEngine, pytorch/tensor/nvfp4_tensor.py; fouroversix's, too
_SIGNS = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)
_ROTATION = Hadamard(16, _SIGNS)


def nvfp4() -> Recipe:
    """NVFP4 as TransformerEngine ships it: weights in tiles of 16 x 16, gradients stochastic, and
    a random Hadamard transform of grad_weight's operands.

    NVIDIA 2025, arXiv 2509.25149; NVFP4BlockScaling of TransformerEngine,
    common/recipe/__init__.py, with its defaults; cvt.rs has 8 random bits an element.  The nearest
    e4m3 scale clips block maxima by up to 1/16, so that stochastic gradients are biased by about
    1 % there, as on the hardware.  Left out: the paper's layers in bf16 (some at the end;
    `overrides`) and its switch to higher precision near the end (`Schedule`); TransformerEngine
    rounds the rotated operands to bf16 first, and leaves attention's products alone.
    """
    operand = Quantizer(format=e2m1, granularity=blocks(16), scale=_TWO_LEVELS)
    gradient = stochastically(operand, 8)
    return Recipe(
        name="nvfp4",
        forward=Forward(input=operand, weight=replace(operand, granularity=blocks(16, 16))),
        grad_input=GradInput(grad_output=gradient),
        grad_weight=GradWeight(grad_output=gradient, input=operand, transform=_ROTATION),
        source="TransformerEngine NVFP4BlockScaling; arXiv 2509.25149",
        leaves_out="layers and last steps in bf16; scales clip, gradients are biased by about 1 %",
        when="FP4 training on Blackwell, as NVIDIA does it",
    )


def four_over_six() -> Recipe:
    """NVFP4 in which each block's maximum becomes 6 or 4, whichever errs less (mean squares).

    Cook et al. 2025, "Four Over Six", arXiv 2512.02010; mit-han-lab/fouroversix:
    quantize/pytorch/reference.py (e4m3 scales up to 256), model/modules/linear.py (a random
    Hadamard transform of grad_weight's operands), model/config.py (weights in tiles of 16 x 16 for
    training, scale_rule mse) and scripts/train/configs (gradients stochastic_unbiased: tops times
    16/17, so that the nearest scale clips nothing).  Left out: the last 4 of 24 layers in bf16
    (`overrides`).
    """
    over = Scale(fp32, top=256)
    best = Scale(e4m3, over=over, reciprocal=True, candidates=(6, 4))
    operand = Quantizer(format=e2m1, granularity=blocks(16), scale=best)
    gradient = stochastically(replace(operand, scale=replace(best, headroom=17 / 16)))
    return Recipe(
        name="four-over-six",
        forward=Forward(input=operand, weight=replace(operand, granularity=blocks(16, 16))),
        grad_input=GradInput(grad_output=gradient),
        grad_weight=GradWeight(grad_output=gradient, input=operand, transform=_ROTATION),
        source="arXiv 2512.02010; mit-han-lab/fouroversix model/modules/linear.py",
        leaves_out="the last layers in bf16",
        when="NVFP4 that errs less, at the cost of a second try a block",
    )


def fp4_all_the_way() -> Recipe:
    """NVFP4 in all products without a transform: nearest in the forward, stochastic in the two
    backward products, both operands of each.

    Chmiel, Fishman, Banner, Soudry 2025, arXiv 2505.19115.  Blocks of 16 along each product's sum,
    e4m3 scales up to 448 under a scale of the tensor.  Left out: e4m3 as Gaudi has it (to 240,
    holding the reciprocal of the scale), the switch to higher precision once the gradient falls
    below sqrt(3) times the quantization noise (`set_recipe`).  The nearest scale clips block maxima
    by up to 1/16, which biases stochastic rounding there.
    """
    two = Scale(e4m3, over=Scale(fp32, top=448))
    operand = Quantizer(format=e2m1, granularity=blocks(16), scale=two)
    drawn = stochastically(operand)
    return Recipe(
        name="fp4-all-the-way",
        forward=Forward(input=operand, weight=operand),
        grad_input=GradInput(grad_output=drawn, weight=drawn),
        grad_weight=GradWeight(grad_output=drawn, input=drawn),
        source="arXiv 2505.19115",
        leaves_out="Gaudi's e4m3 (to 240); precise last steps; scales clip, a bias of about 1 %",
        when="FP4 in all products without a rotation",
    )


def quartet2() -> Recipe:
    """Quartet II: Four Over Six in the forward; MS-EDEN in both backward products, of the values
    that the forward multiplied: rotated, to nearest under scales for the least error, which are
    then corrected and rounded stochastically, which leaves gradients nearly no bias.

    Panferov, Schultheis, Tabesh, Alistarh 2026, arXiv 2601.22813; IST-DASLab/Quartet-II at 8776a90,
    src/models/quantization/schemes/quartet_2.py (e4m3 scales up to 255.99, 6 as 17/16 * 0.93 of it,
    corrected over the rotation) and scripts/quartetv2_sweep.sh (128 wide, maxima of the step
    itself), kernels/python/quartet2/linear.py (four_over_six).  Ties go away from 0 there, and one
    draw of signs serves both products.  Left out: rotations in bf16.
    """
    best = Scale(e4m3, over=Scale(fp32, top=256), candidates=(6, 4))
    forward = Quantizer(format=e2m1, granularity=blocks(16), scale=best)
    eden = Scale(
        e4m3,
        rounding=stochastic(),
        headroom=17 / 16 * 0.93,
        over=Scale(fp32, top=255.99),
        correction=blocks(128),
    )
    drawn, rotation = replace(forward, scale=eden), hadamard(128, "step")
    return Recipe(
        name="quartet2",
        forward=Forward(input=forward, weight=forward),
        grad_input=GradInput(grad_output=drawn, weight=drawn, source="forward", transform=rotation),
        grad_weight=GradWeight(
            grad_output=drawn, input=drawn, source="forward", transform=rotation
        ),
        source="arXiv 2601.22813; IST-DASLab/Quartet-II schemes/quartet_2.py",
        leaves_out="rotations in bf16",
        when="NVFP4 in all products, nearly unbiased gradients of less noise",
    )
