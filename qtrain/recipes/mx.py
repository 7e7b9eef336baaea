"""Microscaling (MX): blocks of 32 along the sum with a scale that is a power of two."""

from __future__ import annotations

from typing import Literal

from quantizers import (
    FloatFormat,
    Format,
    Quantizer,
    Scale,
    blocks,
    e2m1,
    e3m0,
    e3m2,
    e4m3,
    e8m0,
    int8,
)

from .. import checks
from ..recipe import Forward, GradInput, GradWeight, Recipe, hadamard
from .clipping import stochastically

#: the blocks of the OCP MX specification 1.0
_BLOCK = blocks(32)
#: the scale of its section 6.3, 2^(floor(log2 amax) - emax), which may clip
_OCP = Scale(e8m0, rule="ocp_floor")
#: the scale that is rounded up, 2^ceil(log2(amax / largest)), which clips nothing
_RCEIL = Scale(e8m0, rule="rceil")


def _mx(fmt: Format, scale: Scale) -> Quantizer:
    return Quantizer(format=fmt, granularity=_BLOCK, scale=scale)


def _everywhere(name: str, operand: Quantizer, source: str, leaves_out: str, when: str) -> Recipe:
    return Recipe(
        name=name,
        forward=Forward(input=operand, weight=operand),
        grad_input=GradInput(grad_output=operand),
        grad_weight=GradWeight(grad_output=operand),
        source=source,
        leaves_out=leaves_out,
        when=when,
    )


def mxfp8(*, variant: Literal["rceil", "ocp"] = "rceil") -> Recipe:
    """MXFP8: e4m3 everywhere, each product's operands cut along its own sum.

    "rceil": the scale rounded up, as TransformerEngine's MXFP8BlockScaling (format E4M3) and
    torchao's RCEIL have it (Mishra, Stosic, Layton 2025, "Recipes for Pre-training LLMs with
    MXFP8").  "ocp": the rule of the OCP MX
    specification 1.0, 6.3 (torchao's FLOOR), which clips maxima beyond 448 of 512.
    """
    checks.choice("variant", variant, ("rceil", "ocp"))
    ocp = variant == "ocp"
    return _everywhere(
        "mxfp8, ocp" if ocp else "mxfp8",
        _mx(e4m3, _OCP if ocp else _RCEIL),
        "OCP MX 1.0, 6.3" if ocp else "TransformerEngine MXFP8BlockScaling; torchao RCEIL",
        "",
        "Blackwell and later; the safest of the block formats",
    )


def mxfp6() -> Recipe:
    """MXFP6: e3m2 everywhere under OCP's scale.

    Rouhani et al. 2023, arXiv 2310.10537; microsoft/microxcaling, examples/run_mxfp6.sh and
    ffn_mx_auto.py (fp6_e3m2, block_size 32, 8-bit scales), whose outputs and vector operations are
    bf16: `activation=bf16` adds that.
    """
    return _everywhere(
        "mxfp6",
        _mx(e3m2, _OCP),
        "arXiv 2310.10537; microxcaling examples/run_mxfp6.sh",
        "bf16 outputs and vector operations",
        "between FP8 and FP4; MX hardware with FP6",
    )


def mxint8() -> Recipe:
    """MXINT8: int8 everywhere under OCP's scale, steps of 1/64 of it.

    OCP MX specification 1.0, 6.3; arXiv 2310.10537.  -128 is not used, as in microxcaling.
    """
    return _everywhere(
        "mxint8",
        _mx(int8, _OCP),
        "OCP MX 1.0; arXiv 2310.10537",
        "",
        "integer units with block scales; nearly bf16",
    )


def mxfp4() -> Recipe:
    """MXFP4 in the backward pass alone, unbiased: e2m1 under OCP's scale, elements times 3/4 so
    that none is clipped, stochastic rounding, a random Hadamard transform with signs of each step.

    Tseng, Yu, Park 2025, arXiv 2502.20586; IST-DASLab/Quartet,
    quantizers/mxfp4.py (AlbertTsengQuantizer: 32 wide, gaussian_scale 3/4) and backward.py
    (QEQWtt_QEtQXtt: both operands of both products).  The forward is left alone; the paper runs it
    in bf16, or FP8.
    """
    operand = stochastically(_mx(e2m1, Scale(e8m0, rule="ocp_floor", prescale=3 / 4)))
    rotation = hadamard(32, signs="step")
    return Recipe(
        name="mxfp4",
        grad_input=GradInput(grad_output=operand, weight=operand, transform=rotation),
        grad_weight=GradWeight(grad_output=operand, input=operand, transform=rotation),
        source="arXiv 2502.20586; IST-DASLab/Quartet quantizers/mxfp4.py, backward.py",
        leaves_out="the bf16 (or FP8) forward, which is fp32 here",
        when="FP4 in two thirds of the products, at the least risk",
    )


def mxfp4_e3m0() -> Recipe:
    """MXFP4 throughout: inputs and weights e2m1 to nearest, gradients e3m0 (powers of two)
    stochastically, scales rounded up.

    Public code: brianchmiel/nanoGPT_MXFP4, quantization.py (MXFp4QuantLinear,
    compute_scaling_factor).  Its e3m0 has bias 1, 1 to 64 for our 1/4 to 16, which a power of two
    undoes.
    """
    forward: FloatFormat = e2m1
    operand, gradient = _mx(forward, _RCEIL), stochastically(_mx(e3m0, _RCEIL))
    return Recipe(
        name="mxfp4-e3m0",
        forward=Forward(input=operand, weight=operand),
        grad_input=GradInput(grad_output=gradient),
        grad_weight=GradWeight(grad_output=gradient),
        source="brianchmiel/nanoGPT_MXFP4 quantization.py",
        leaves_out="",
        when="FP4 in all products with scales of powers of two",
    )


def tetrajet() -> Recipe:
    """TetraJet: MXFP4 throughout, e2m1 under scales rounded up, which clip nothing; to nearest in
    the forward, stochastic in both backward products, which quantize the values that the forward
    multiplied (double quantization), so that their gradients are unbiased ones of its output.

    Chen, Xi, Zhu, Chen 2025, arXiv 2502.20853; thu-ml/TetraJet-MXFP4Training at bbe9bd6,
    quantization/QLinear.py (Q1 to Q6) and QuantizerFP_torch.py (MXScale 1), as
    scripts/Pretrain-TetraJet runs it.  Left out: the paper's remedies for weights that oscillate,
    the rounding towards a running mean (Q-EMA) and the optimizer's (Q-Ramping); inputs in bf16.
    """
    operand = _mx(e2m1, _RCEIL)
    drawn = stochastically(operand)
    return Recipe(
        name="tetrajet",
        forward=Forward(input=operand, weight=operand),
        grad_input=GradInput(grad_output=drawn, weight=drawn, source="forward"),
        grad_weight=GradWeight(grad_output=drawn, input=drawn, source="forward"),
        source="arXiv 2502.20853; thu-ml/TetraJet-MXFP4Training quantization/QLinear.py",
        leaves_out="Q-EMA and Q-Ramping, against weights that oscillate; bf16 inputs",
        when="FP4 in all products, gradients unbiased, scales of powers of two",
    )
