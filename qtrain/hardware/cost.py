"""cost: what the products of a network would cost in hardware, on one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .. import checks
from ..conversion.watch import rehearsed
from ..inspection.probes import watchable
from ..products.module import products_of
from ..products.operations import KINDS, Kind
from .counter import Counter
from .energy import SZE2017, EnergyTable
from .report import CostReport, CostRow


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
    input for grad_weight and the weight for grad_input, each layer its own.  Integers and floats
    take their bits, scales those of their format (fp32 for a quantizer that names none), zero
    points those of the elements; results their dtype, or the activation format.

    Not counted: what is done once for each element of an operand or a result (quantizing, scales,
    zero points, biases and their gradients), adding the sums of blocks, norms, softmax, the loss,
    the optimizer, and the energy of memory.

    Raises ValueError where no product was counted, no output has a gradient, or the table lacks
    an operation and has no rule for it.
    """
    if not isinstance(table, EnergyTable):
        checks.refuse("table", table, "a qtrain.EnergyTable")
    twin = watchable(model)
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
        (name, key, counter.sums[key])
        for name, counter in counters
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
        estimated=" ".join(unit.estimated),
        table=table.name,
    )
