"""What sums a product: fp32 units, bf16 units, or an accumulator."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from quantizers import FloatFormat, IntFormat, Off, Quantizer, QuantizerLike, bf16
from quantizers.accumulators import Accumulator, Integer, Sequential, needs
from quantizers.formats import Format
from quantizers.protocol import format_of

from .slots import OPERANDS, Forward, GradInput, GradWeight, Slot, short

#: the dtype of units whose results are rounded to it; None: integers exactly, others in fp32
Unit = torch.dtype | Accumulator | None


def unit_of(
    product: str, of: Forward | GradInput | GradWeight, slots: Mapping[tuple[str, str], Slot]
) -> Unit:
    """What is asked of a product; ValueError where that cannot multiply its operands.

    A quantizer without a format is seen when it is called.
    """
    operands = {name: slots[product, name].quantizer for name in OPERANDS[product]}
    unit = of.unit if isinstance(of, GradWeight) else "fp32"
    if of.accumulator is not None:
        for name, quantizer in operands.items():
            fmt = format_of(quantizer)
            if fmt is not None or isinstance(quantizer, Off):
                check_taken(product, of.accumulator, name, fmt, short(quantizer))
    if unit == "fp32":
        return of.accumulator
    if of.accumulator is not None:
        raise ValueError(
            f"{product}.unit: got 'bf16', whose sums are fp32's, and accumulator="
            f"{of.accumulator}; leave one out"
        )
    if any(slots[product, name].cut for name in operands):
        raise ValueError(
            "grad_weight.unit: got 'bf16', but blocks along its sum are added in fp32: use "
            "unit='fp32'"
        )
    _check_bf16(operands)
    return torch.bfloat16


def text_of(unit: Unit) -> str | None:
    """In words; None for the usual."""
    return "bf16 units" if isinstance(unit, torch.dtype) else None if unit is None else str(unit)


def too_narrow(units: Mapping[str, Unit], slots: Mapping[tuple[str, str], Slot]) -> dict[str, str]:
    """Products of which two elements multiplied can leave the accumulator, and how, in words.

    Of elements with a scale of their tensor's, which the largest of it brings to their format's
    end; what others reach is the tensor's own.
    """
    found = {}
    for product, unit in units.items():
        if not isinstance(unit, Sequential | Integer):
            continue
        quantizers = [slots[product, name].quantizer for name in OPERANDS[product]]
        scaled = [q for q in quantizers if isinstance(q, Quantizer) and q.range is not None]
        reach = math.prod(max(-q.format.low, q.format.high) for q in scaled)
        holds, beyond = _holds(unit)
        if len(scaled) == 2 and reach > holds:
            found[product] = (
                f"products of {' and '.join(str(q.format) for q in scaled)} reach {reach:g}, and "
                f"{unit} holds {holds:g}: {beyond}"
            )
    return found


def _holds(unit: Sequential | Integer) -> tuple[float, str]:
    """The largest sum, and what larger ones become."""
    if isinstance(unit, Integer):
        does = {"wrap": "larger ones wrap", "saturate": "larger ones saturate"}
        return 2.0 ** (unit.bits - 1) - 1, does[unit.overflow]
    formats = [unit.format] if unit.product is None else [unit.format, unit.product]
    least = min(formats, key=lambda own: own.largest)
    does = {"inf": "larger ones are infinite, and make NaN", "nan": "larger ones are NaN"}
    return least.largest, does.get(least.on_overflow, "larger ones saturate")


def check_taken(
    product: str, accumulator: Accumulator, operand: str, format: Format | None, given: object
) -> None:
    """ValueError where an accumulator does not take elements of a format; given: what has it."""
    need = needs(accumulator, format)
    if need is not None:
        raise ValueError(
            f"{product}.accumulator: {accumulator} multiplies {need}, but {operand} is {given}; "
            f"quantize it so, take an accumulator of any formats, such as sequential(fp16), or "
            f"name this one in the other products alone, such as forward.accumulator"
        )


def _exact_in_bf16(fmt: object) -> bool:
    """Whether bf16 holds every element, less any zero point."""
    if isinstance(fmt, IntFormat):
        return fmt.high - fmt.low <= 256
    return isinstance(fmt, FloatFormat) and fmt.mantissa <= bf16.mantissa


def _check_bf16(operands: Mapping[str, QuantizerLike]) -> None:
    formats = {name: format_of(quantizer) for name, quantizer in operands.items()}
    for name, fmt in formats.items():
        if not _exact_in_bf16(fmt):
            raise ValueError(
                f"grad_weight.unit: 'bf16' holds 8 significant bits, but {name} is "
                f"{short(operands[name])}; quantize it to integers of at most 8 bits or to a "
                f"float format of at most 7 mantissa bits, or use unit='fp32'"
            )
    if all(isinstance(fmt, IntFormat) for fmt in formats.values()):
        raise ValueError(
            "grad_weight.unit: got 'bf16', but both operands are integer, and their sums are "
            "exact: use unit='fp32'"
        )
