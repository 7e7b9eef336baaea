"""What the others are compared with: full precision, and the floats of 16 bits."""

from __future__ import annotations

from quantizers import FloatFormat, Quantizer
from quantizers import bf16 as bf16_format
from quantizers import fp16 as fp16_format

from ..recipe import Forward, GradInput, GradWeight, Recipe


def unscaled(fmt: FloatFormat) -> Quantizer:
    """Elements as they are, rounded to the format."""
    return Quantizer(format=fmt, range=None)


def fp32() -> Recipe:
    """Everything off: the model computes exactly what it did before."""
    return Recipe(name="fp32", when="the baseline of every comparison")


def _half(name: str, fmt: FloatFormat, source: str, when: str) -> Recipe:
    operand = unscaled(fmt)
    return Recipe(
        name=name,
        forward=Forward(input=operand, weight=operand),
        grad_input=GradInput(grad_output=operand),
        grad_weight=GradWeight(grad_output=operand),
        activation=fmt,
        source=source,
        when=when,
    )


def bf16() -> Recipe:
    """bf16 operands in all three products, fp32 accumulation, bf16 outputs."""
    return _half(
        "bf16", bf16_format, "Kalamkar et al. 2019, arXiv 1905.12322", "what most train in today"
    )


def fp16() -> Recipe:
    """fp16 operands in all three products, fp32 accumulation, fp16 outputs; overflow gives inf
    (train it with a GradScaler, as real fp16)."""
    when = "machines without bf16; with a GradScaler"
    return _half("fp16", fp16_format, "Micikevicius et al. 2018, arXiv 1710.03740", when)
