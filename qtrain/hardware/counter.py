"""Counting what a layer's products do: multiplications, and bits read, written and kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from quantizers import FloatFormat, IntFormat, QTensor, fp32
from quantizers.formats import NAMED

from ..products.call import Computed, Probe
from ..products.operations import Kind
from ..products.product import Product
from ..recipe import OPERANDS, Recipe

_DTYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}


@dataclass
class Sums:
    """What a row needs, summed over every call of a layer."""

    macs: int = 0
    moved_bits: int = 0
    stored_bits: int = 0
    fp32_moved_bits: int = 0
    fp32_stored_bits: int = 0


@dataclass
class Counter(Probe):
    """The probe of one layer.

    sums: (product, formats of its operands) -> what they sum up to
    """

    recipe: Recipe
    sums: dict[tuple[Kind, str, str], Sums] = field(default_factory=dict)

    def result(self, product: Computed) -> None:
        kind, (a, b) = product.kind, product.operands
        row = self.sums.setdefault((kind, _format(a), _format(b)), Sums())
        row.macs += _macs(product)
        a_bits, b_bits = (
            _bits(q, self.recipe.slots[kind, operand].quantizer)
            for q, operand in zip((a, b), OPERANDS[kind], strict=True)
        )
        elements = product.result.numel()
        row.moved_bits += a_bits + b_bits + elements * self._result_bits(kind, product.dtype)
        row.fp32_moved_bits += 32 * (a.elements.numel() + b.elements.numel() + elements)
        if kind != "forward":
            row.stored_bits += b_bits
            row.fp32_stored_bits += 32 * b.elements.numel()

    def _result_bits(self, kind: Kind, dtype: torch.dtype) -> int:
        """Of an element of a product's result, as it is handed on."""
        if kind == "forward" and self.recipe.activation is not None:
            return self.recipe.activation.bits
        return 8 * (self.recipe.units[kind] or dtype).itemsize


def _macs(product: Computed) -> int:
    """Multiplications of a product.

    output = input (x) weight is a sum of terms input * weight, and each backward product
    differentiates it: all three multiply as often, each weight once at each position it meets.
    """
    a, b = (q.elements for q in product.operands)
    kind, result = product.kind, product.result
    shapes = {
        "forward": (a, b, result),
        "grad_input": (result, b, a),
        "grad_weight": (b, result, a),
    }
    input, weight, output = (x.shape for x in shapes[kind])
    return math.prod(weight) * math.prod(
        Product(product.operation, "grad_weight").terms(output, input)
    )


def _format(q: QTensor) -> str:
    """What hardware needs to know of an operand's format; its dtype where it is not quantized."""
    if isinstance(q.format, IntFormat):
        return f"int{q.format.bits}"
    if isinstance(q.format, FloatFormat):
        named = NAMED.get(q.format.name) == q.format
        return q.format.name if named else f"e{q.format.exponent}m{q.format.mantissa}"
    return _DTYPES.get(q.values_dtype, str(q.values_dtype))


def _bits(q: QTensor, quantizer: object) -> int:
    """Of an operand in memory: elements, scales in the quantizer's scale format, zero points in
    the elements' own."""
    each = 8 * q.elements.element_size() if q.format is None else q.format.bits
    scales = 0 if q.scale is None else q.scale.numel()
    points = 0 if q.zero_point is None else q.zero_point.numel()
    scale_format = getattr(quantizer, "scale_format", fp32)
    return (q.elements.numel() + points) * each + scales * int(scale_format.bits)
