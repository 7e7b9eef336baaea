"""cost: what the products of a network would cost in hardware, on one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quantizers import FloatFormat, IntFormat, QTensor, Quantizer, TableFormat, fp32
from quantizers.accumulators import Aligned, Integer, Sequential
from quantizers.formats import NAMED

from .. import checks
from ..conversion.watch import rehearsed
from ..inspection.probes import watchable
from ..products.module import products_of
from ..products.operations import KINDS, Kind
from ..products.probe import Computed, Probe
from ..products.product import multiply_adds
from ..recipe import OPERANDS, Recipe
from ..recipe.units import Unit
from .energy import SZE2017, EnergyTable
from .report import CostReport, CostRow

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

    def add(self, macs: int, operands: Sequence[int], result: int, *, stores: bool) -> None:
        """One call; operands, result: their bits; stores: the second was kept since the forward."""
        self.macs += macs
        self.moved_bits += sum(operands) + result
        self.stored_bits += operands[1] if stores else 0


@dataclass
class Counter(Probe):
    """The probe of one layer.

    sums: (product, formats of its operands) -> what they sum up to, as they are and in fp32
    kept: the weight that the last grad_input took
    """

    recipe: Recipe
    kept: Tensor | None = None
    sums: dict[tuple[Kind, str, str], tuple[Sums, Sums]] = field(default_factory=dict)

    def result(self, product: Computed) -> None:
        kind, (a, b) = product.kind, product.operands
        own, exact = self.sums.setdefault((kind, _format(a), _format(b)), (Sums(), Sums()))
        given = _given(product)
        macs, stores, elements = _macs(product, *given), kind != "forward", product.result.numel()
        if kind == "grad_input":  # of all steps of a recurrent layer it is the same one
            stores = self.kept is None or not _shares(self.kept, b.elements)
            self.kept = b.elements
        sizes, bits = [x.numel() for x in given], []
        for q, operand, size in zip((a, b), OPERANDS[kind], sizes, strict=True):
            multiplied = _bits(q, self.recipe.slots[kind, operand].quantizer)
            # what is multiplied as a matrix of unfolded windows is read once, too
            bits.append(multiplied * size // max(q.elements.numel(), 1))
        own.add(macs, bits, self._result_bits(product), stores=stores)
        exact.add(macs, [32 * size for size in sizes], 32 * elements, stores=stores)

    def _result_bits(self, product: Computed) -> int:
        """Of a product's result, as it is handed on."""
        activation, elements = self.recipe.activation, product.result.numel()
        if product.handed is not None:
            return _bits(product.handed, activation)
        if product.kind == "forward" and isinstance(activation, FloatFormat):
            return elements * activation.bits
        unit = self.recipe.units[product.kind]
        return elements * 8 * (unit if isinstance(unit, torch.dtype) else product.dtype).itemsize


def _shares(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors lie in the same memory."""
    shared: bool = torch._C._is_alias_of(a, b)  # type: ignore[attr-defined]
    return shared


def _given(product: Computed) -> tuple[Tensor, Tensor]:
    """The operands as the operation takes them: where blocks are cut, matrices are multiplied."""
    other = product.operands[1].elements if product.b is None else product.b
    return product.a, other


def _macs(product: Computed, a: Tensor, b: Tensor) -> int:
    """Multiplications of a product of operands as the operation takes them."""
    kind, result = product.kind, product.result
    shapes = {
        "forward": (a, b, result),
        "grad_input": (result, b, a),
        "grad_weight": (b, result, a),
    }
    input, weight, output = (x.shape for x in shapes[kind])
    return multiply_adds(product.operation, input, weight, output)


def _format(q: QTensor) -> str:
    """What hardware needs to know of an operand's format; its dtype where it is not quantized; fp32
    for a table, whose values are looked up."""
    if isinstance(q.format, IntFormat):
        return f"int{q.format.bits}"
    if isinstance(q.format, FloatFormat):
        return _name(q.format)
    if isinstance(q.format, TableFormat):
        return "fp32"
    return _DTYPES.get(q.values_dtype, str(q.values_dtype))


def _sum_of(unit: Unit) -> str | None:
    """The format that is added in; None: what the table says."""
    if isinstance(unit, Integer):
        return f"int{unit.bits}"
    if isinstance(unit, Sequential):
        return _name(unit.format)
    return f"e8m{unit.bits}" if isinstance(unit, Aligned) else None


def _name(fmt: FloatFormat) -> str:
    named = NAMED.get(fmt.name) == fmt
    return fmt.name if named else f"e{fmt.exponent}m{fmt.mantissa}"


def _bits(q: QTensor, quantizer: object) -> int:
    """Of an operand in memory: elements, scales in the quantizer's scale format, outer ones in
    fp32, zero points in the elements' own."""
    each = 8 * q.elements.element_size() if q.format is None else q.format.bits
    scales = 0 if q.scale is None else q.scale.numel()
    points = 0 if q.zero_point is None else q.zero_point.numel()
    outer = 0 if q.outer is None else q.outer.numel()
    fmt = quantizer.scale.format if isinstance(quantizer, Quantizer) else fp32
    return (q.elements.numel() + points) * each + scales * fmt.bits + outer * fp32.bits


def cost(model: nn.Module, *inputs: Any, table: EnergyTable = SZE2017, **kwargs: Any) -> CostReport:
    """What every matrix product of a model would cost in hardware, on one batch of inputs.

    model    converted by `quantize`, or plain: layers left or off count in full precision, at
             their dtype
    inputs   what the model is called with, by position and, `kwargs`, by name
    table    energy of operations; the default is 45 nm, see qtrain.energy

    One pass, forward and backward from the sum of the outputs, runs on a copy in the model's
    present mode: nothing of the model changes.  Under torch.no_grad() the forward alone is counted.

    Multiply-adds: every product of every convertible layer, those with padding zeros too, as dense
    hardware computes them (and as torch.utils.flop_counter counts, at two operations each); a
    forward that is recomputed counts again.  Bytes moved: both operands read once, the result
    written once.  Bytes stored: the operand that a backward product keeps from the forward, the
    input for grad_weight and the weight for grad_input, each layer its own; a weight that several
    calls share, as the steps of a recurrent layer, once.  Integers and floats
    take their bits, scales those of their format (fp32 for a quantizer that names none), zero
    points those of the elements; an accumulator adds in its own format, one that aligns in as many
    fraction bits as it aligns; results their dtype, or as the recipe's activation has them.

    Not counted: what is done once for each element of an operand or a result (quantizing, scales,
    zero points, biases and their gradients), adding the sums of blocks, norms, lookups in
    tables, softmax, the loss, the optimizer, and the energy of memory.  What ran outside of layers,
    as in a torch.autograd.Function, has no row, and counts in the share that follows a recipe.

    Raises ValueError where no product was counted, no output has a gradient, or the table lacks
    an operation and has no rule for it.
    """
    if not isinstance(table, EnergyTable):
        checks.refuse("table", table, "a qtrain.EnergyTable")
    twin = watchable(model, *inputs, **kwargs)
    counters: list[tuple[str, Counter]] = []
    for product in products_of(twin):
        product.probe = counter = Counter(product.recipe)
        counters.append((product.name, counter))
    learning = torch.is_grad_enabled()
    watch, learned = rehearsed(twin, inputs, kwargs, learning=learning)
    if learning and not learned:
        raise ValueError(
            "cost: no output of the model has a gradient, so there is no backward pass to count; "
            "call it under torch.no_grad() to count the forward alone"
        )
    found = [
        (name, key, counter.recipe, counter.sums[key])
        for name, counter in counters
        for key in sorted(counter.sums, key=lambda key: KINDS.index(key[0]))
    ]
    if not found:
        raise ValueError(
            f"cost: {type(model).__name__} ran no linear, convolution, recurrent or attention "
            f"layer, and no matrix product"
        )
    share = watch.share
    return CostReport(
        tuple(_row(name, key, own, table, by.units[key[0]]) for name, key, by, (own, _) in found),
        tuple(
            _row(name, (key[0], "fp32", "fp32"), fp32, table, None)
            for name, key, _, (_, fp32) in found
        ),
        watch.outside,
        [name for name, instead in watch.never_ran().items() if not instead],
        sum(own.macs for _, (kind, *_), by, (own, _) in found if kind not in by.off),
        share.left.total() + (2 * (share.left.total() - share.constant) if learning else 0),
        sorted(share.uncounted),
    )


def _row(
    layer: str, formats: tuple[Kind, str, str], sums: Sums, table: EnergyTable, by: Unit
) -> CostRow:
    kind, a, b = formats
    unit = table.unit(a, b, _sum_of(by))
    return CostRow(
        layer=layer,
        product=kind,
        a=a,
        b=b,
        accumulator=unit.accumulator,
        macs=sums.macs,
        moved_bytes=sums.moved_bits / 8,
        stored_bytes=sums.stored_bits / 8,
        energy_pj=sums.macs * (unit.multiply.pj + unit.add.pj),
        add_pj=sums.macs * unit.add.pj,
        estimated=" ".join(unit.estimated),
        table=table.name,
    )
