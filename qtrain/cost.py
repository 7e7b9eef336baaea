"""cost: what the products of a network would cost in hardware, on one batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quantizers import FloatFormat, IntFormat, QTensor, fp32
from quantizers.formats import NAMED

from .aside import unwrapped
from .conversion import forget_watch, rehearsed
from .convert import convert_left_
from .copies import copied
from .cost_report import CostReport
from .cost_row import CostRow
from .energy import SZE2017, EnergyTable
from .layer_products import Computed
from .layers import QProduct
from .operations import KINDS, Kind
from .recipe import Recipe

_OPERANDS: dict[Kind, tuple[str, str]] = {
    "forward": ("input", "weight"),
    "grad_input": ("grad_output", "weight"),
    "grad_weight": ("grad_output", "input"),
}
_DTYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}


class _Watched(Recipe):
    """Full precision, but computed by our own products, which a probe sees."""

    @property
    def products_off(self) -> bool:
        return False


_FULL = _Watched(name="fp32")


@dataclass
class _Sums:
    """What a row needs, summed over every call of a layer."""

    macs: int = 0
    moved_bits: int = 0
    stored_bits: int = 0
    fp32_moved_bits: int = 0
    fp32_stored_bits: int = 0


@dataclass
class _Counter:
    """The probe of one layer."""

    recipe: Recipe
    sums: dict[tuple[Kind, str, str], _Sums] = field(default_factory=dict)

    def operand(self, kind: Kind, operand: str, x: Tensor, q: QTensor, folded: bool) -> None:
        pass

    def engine(self, kind: Kind, name: str) -> None:
        pass

    def result(self, product: Computed) -> None:
        kind, (a, b) = product.kind, product.operands
        row = self.sums.setdefault((kind, _format(a), _format(b)), _Sums())
        row.macs += _macs(product)
        a_bits, b_bits = (
            _bits(q, self.recipe.slot(kind, operand))
            for q, operand in zip((a, b), _OPERANDS[kind], strict=True)
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
        if kind == "grad_weight" and self.recipe.unit is not None:
            return 8 * self.recipe.unit.itemsize
        return 8 * dtype.itemsize


def _macs(product: Computed) -> int:
    """Multiplications of a product.

    output = input (x) weight is a sum of terms input * weight, and each backward product
    differentiates it: all three multiply as often, each weight once at each position it meets.
    """
    kind, a, b, result = product.kind, product.a, product.b, product.result
    shapes = {
        "forward": (a, b, result),
        "grad_input": (result, b, a),
        "grad_weight": (b, result, a),
    }
    input, weight, output = (x.shape for x in shapes[kind])
    return math.prod(weight) * math.prod(product.operation.terms("grad_weight", output, input))


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


def cost(model: nn.Module, *inputs: Any, table: EnergyTable = SZE2017, **kwargs: Any) -> CostReport:
    """What every matrix product of a model would cost in hardware, on one batch of inputs.

    model    converted by `quantize`, or plain: layers left or off count in full precision, at
             their dtype
    inputs   what the model is called with, by position and, `kwargs`, by name
    table    energy and area of operations; the default is 45 nm, see qtrain.energy

    One pass, forward and backward from the sum of the outputs, runs on a copy in the model's
    present mode: nothing of the model changes.  Under torch.no_grad() the forward alone is counted.

    Multiply-adds: every product of every convertible layer, those with padding zeros too, as dense
    hardware computes them (and as torch.utils.flop_counter counts, at two operations each); a
    forward that is recomputed counts again.  Bytes moved: both operands read once, the result
    written once.  Bytes stored: the operand that a backward product keeps from the forward, the
    input for grad_weight and the weight for grad_input, each layer its own.  Integers and floats
    take their bits, scales those of their format (fp32 for a quantizer that names none), zero
    points those of the elements; results their dtype, or the activation format.

    Not counted: memory accesses as energy, operations that are O(1) for each element of an operand
    or a result (quantizing, scales, zero points' corrections, sums of blocks, biases and their
    gradients), norms, softmax, the optimizer.

    Raises ValueError where no product was counted, no output has a gradient, or the table lacks
    an operation and has no rule for it.
    """
    twin = copied(unwrapped(model))
    forget_watch(twin)
    convert_left_(twin, _FULL)
    counters: dict[str, _Counter] = {}
    for product in twin.modules():
        if isinstance(product, QProduct):
            if product.recipe.products_off:
                product.recipe = _FULL
            counter = counters.setdefault(product.name or "(model)", _Counter(product.recipe))
            product.probe = counter
    learning = torch.is_grad_enabled()
    watch, learned = rehearsed(twin, inputs, kwargs, learning=learning)
    if learning and not learned:
        raise ValueError(
            "cost: no output of the model has a gradient, so there is no backward pass to count; "
            "call it under torch.no_grad() to count the forward alone"
        )
    found = [
        (name, key, counter.sums[key])
        for name, counter in counters.items()
        for key in sorted(counter.sums, key=lambda key: KINDS.index(key[0]))
    ]
    if not found:
        raise ValueError(
            f"cost: {type(model).__name__} ran no linear, convolution, matrix product or attention "
            f"layer"
        )
    return CostReport(
        tuple(
            _row(name, kind, a, b, sums.macs, sums.moved_bits, sums.stored_bits, table)
            for name, (kind, a, b), sums in found
        ),
        tuple(
            _row(
                name, kind, "fp32", "fp32", sums.macs, sums.fp32_moved_bits,
                sums.fp32_stored_bits, table,
            )
            for name, (kind, _, _), sums in found
        ),
        watch.outside,
        watch.never_ran(),
    )  # fmt: skip


def _row(
    layer: str, kind: Kind, a: str, b: str, macs: int, moved: int, stored: int, table: EnergyTable
) -> CostRow:
    unit = table.unit(a, b)
    return CostRow(
        layer=layer,
        product=kind,
        a=a,
        b=b,
        accumulator=unit.accumulator,
        macs=macs,
        moved_bytes=moved / 8,
        stored_bytes=stored / 8,
        energy_pj=macs * (unit.multiply.pj + unit.add.pj),
        add_pj=macs * unit.add.pj,
        area_um2=unit.multiply.um2 + unit.add.um2,
        estimated=" ".join(unit.estimated),
        table=table.name,
    )
