"""What a multiplication and an addition cost in hardware, by the formats of their operands."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field
from typing import NamedTuple, TypeVar

from quantizers.formats import NAMED, FloatFormat

from .. import checks

T = TypeVar("T")


@dataclass(frozen=True)
class UnitCost:
    """One operation: its energy, `pj` in picojoules.

    um2   once the area of its unit; no longer taken

    Raises ValueError for a number below 0 or not finite, TypeError for an area.
    """

    pj: float
    um2: InitVar[None] = None

    def __post_init__(self, um2: None) -> None:
        checks.number("UnitCost.pj", self.pj, low=0)
        if um2 is not None:
            raise TypeError(
                f"UnitCost.um2: got {checks.shown(um2)}, but areas have left qtrain; give the "
                f"energy alone: UnitCost({self.pj})"
            )


class Width(NamedTuple):
    """Of a number in hardware: bits stored; bits multiplied (a float's with its leading 1)."""

    bits: int
    significand: int
    floating: bool


def width(name: str) -> Width:
    """The widths of a format by name: "int8" (signed or not), "fp16", "e4m3", "e6m9", "fp64".

    Raises ValueError for a name that is none of these.
    """
    if name == "fp64":
        return Width(64, 53, True)
    known = NAMED.get(name)
    if isinstance(known, FloatFormat):
        return Width(known.bits, known.mantissa + 1, True)
    if found := re.fullmatch(r"int([1-9]\d*)", name):
        return Width(int(found[1]), int(found[1]), False)
    if found := re.fullmatch(r"e([1-9]\d*)m(\d+)", name):
        exponent, mantissa = int(found[1]), int(found[2])
        return Width(1 + exponent + mantissa, mantissa + 1, True)
    raise ValueError(
        f"format {name!r}: need int<bits> (signed or not), e<exponent>m<mantissa>, fp64 or one of "
        f"{', '.join(n for n, f in NAMED.items() if isinstance(f, FloatFormat))}"
    )


def multiplier(a: str, b: str) -> str:
    """The name of the multiplier of two formats: "int8", or the wider first, floats before
    integers: "int16 x int8", "bf16 x int8"."""
    if a == b:
        return a

    def order(name: str) -> tuple[bool, int, str]:
        found = width(name)
        return not found.floating, -found.bits, name

    return " x ".join(sorted((a, b), key=order))


#: (operation, name, the table's entries of that operation) -> the cost of what is not among them
Estimate = Callable[[str, str, Mapping[str, UnitCost]], UnitCost]


def by_width(operation: str, name: str, known: Mapping[str, UnitCost]) -> UnitCost:
    """The nearest entry of the same kind (integer, or with a float operand), scaled: "multiply" by
    the product of the two significands' widths, "add" by the width of the significand.

    A multiplier is an array of one cell for each pair of significand bits, an adder a row of one
    for each bit.  Held against the table after Horowitz, "Computing's energy problem", ISSCC 2014:
    int32 from int8 gives 3.2 for 3.1 pJ (multiply) and 0.12 for 0.1 pJ (add); fp32 from fp16 5.2
    for 3.7 pJ and 0.87 for 0.9 pJ.  So within a factor of 1.5 there.  Exponents, alignment and
    normalization are not scaled, which flatters floats of few significand bits (e4m3, e2m1) all the
    more: an order of magnitude, no measurement.

    Raises ValueError where the table has no entry of that kind.
    """
    wanted, floating = _size(operation, name)
    sizes = {entry: _size(operation, entry) for entry in known}
    kin = {entry: size for entry, (size, also) in sizes.items() if also == floating}
    if not kin:
        kind = "floating-point" if floating else "integer"
        raise ValueError(
            f"energy table: {operation} of {name!r} cannot be estimated, because there is no "
            f"{kind} entry of {operation} to scale; give one: {operation}={{{name!r}: "
            f"UnitCost(pj)}}"
        )
    # on a tie the narrower
    nearest = min(kin, key=lambda entry: (abs(math.log(kin[entry] / wanted)), kin[entry]))
    return UnitCost(known[nearest].pj * (wanted / kin[nearest]))


def _size(operation: str, name: str) -> tuple[int, bool]:
    """(cells of the unit, whether it has a floating-point operand)."""
    widths = [width(part) for part in name.split(" x ")]
    floating = any(w.floating for w in widths)
    if operation == "add":
        return widths[0].significand, floating
    return widths[0].significand * widths[-1].significand, floating


class MultiplyAdd(NamedTuple):
    """A unit that multiplies and adds.

    multiplier, accumulator   names of its two halves
    estimated   which of "multiply" and "add" are no entries of the table
    """

    multiplier: str
    accumulator: str
    multiply: UnitCost
    add: UnitCost
    estimated: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class EnergyTable:
    """What operations cost: energy in pJ.

    multiply      name of a multiplier ("int8", "bf16 x int8" in either order) -> UnitCost
    add           name of an accumulator's format ("int32", "fp32") -> UnitCost
    accumulators  name of a multiplier -> the format its products are summed in, where that is not
                  what is simulated: integer sums are exact, in 16 bits more than a product has
                  and at least 32 (int32 for int8, int40 for int16 x int8: room for 65,536 of the
                  largest products); sums with a float operand are fp32 (fp64 with fp64 operands)
    estimate      what gives the operations that have no entry; rows in which it was used say so.
                  None: they are an error

    Integers are int<bits>, signed or not.  Raises ValueError/TypeError for a name that is no
    format, and for a value that is no UnitCost.
    """

    name: str
    multiply: Mapping[str, UnitCost]
    add: Mapping[str, UnitCost]
    accumulators: Mapping[str, str] = field(default_factory=dict)
    estimate: Estimate | None = by_width

    def __post_init__(self) -> None:
        checks.text("name", self.name)
        for operation, entries in (("multiply", self.multiply), ("add", self.add)):
            checks.mapping(operation, entries, "a mapping from names of formats to UnitCosts")
            for name, cost in entries.items():
                _check_name(operation, name)
                if not isinstance(cost, UnitCost):
                    checks.refuse(f"{operation}[{name!r}]", cost, "a UnitCost")
        need = "a mapping from names of multipliers to names of formats"
        checks.mapping("accumulators", self.accumulators, need)
        for name, accumulator in self.accumulators.items():
            _check_name("multiply", name)
            _check_name("add", checks.text(f"accumulators[{name!r}]", accumulator))
        if self.estimate is not None:
            need = "a function of (operation, name, the table's entries) that returns a UnitCost"
            checks.function("estimate", self.estimate, need, "", "", {})

    def unit(self, a: str, b: str, accumulator: str | None = None) -> MultiplyAdd:
        """The unit that multiplies formats `a` and `b`, and adds in a format (None: the table's);
        ValueError for what cannot be had."""
        name = multiplier(a, b)
        accumulator = accumulator or _found(name, self.accumulators)
        if accumulator is None:  # what the simulation sums in
            one, two = width(a), width(b)
            accumulator = f"int{max(32, one.bits + two.bits + 16)}"
            if one.floating or two.floating:
                accumulator = "fp64" if 64 in (one.bits, two.bits) else "fp32"
        estimated = []
        costs = []
        for operation, wanted, known in (
            ("multiply", name, self.multiply),
            ("add", accumulator, self.add),
        ):
            cost = _found(wanted, known)
            if cost is None:
                cost = self._estimated(operation, wanted, known)
                estimated.append(operation)
            costs.append(cost)
        return MultiplyAdd(name, accumulator, costs[0], costs[1], tuple(estimated))

    def _estimated(self, operation: str, name: str, known: Mapping[str, UnitCost]) -> UnitCost:
        if self.estimate is None:
            raise ValueError(
                f"energy table {self.name!r} has no {operation} of {name!r}: give it as "
                f"EnergyTable({operation}={{{name!r}: UnitCost(pj), ...}}), or a rule for "
                f"what is missing: estimate=qtrain.energy.by_width"
            )
        found = self.estimate(operation, name, known)
        return checks.instance(
            f"estimate of {operation} of {name!r}", found, UnitCost, "a UnitCost"
        )


def _check_name(operation: str, name: str) -> None:
    parts = name.split(" x ") if operation == "multiply" else [name]
    if len(parts) > 2:
        raise ValueError(f"{operation}: got {name!r}, need one format or two: 'bf16 x int8'")
    for part in parts:
        width(part)


def _found(name: str, entries: Mapping[str, T]) -> T | None:
    """An entry by the name of a multiplier, or by that name turned round."""
    if name in entries:
        return entries[name]
    return entries.get(" x ".join(reversed(name.split(" x "))))


#: 45 nm; V. Sze et al., "Efficient processing of deep neural networks", Proc. IEEE 2017, after M.
#: Horowitz, ISSCC 2014, as Banner et al. 2018 print it.  Their figures for int8 and fp16 sum in the
#: same format: accumulators={"int8": "int8", "fp16": "fp16"}.
SZE2017 = EnergyTable(
    name="45 nm, Sze 2017",
    multiply={"int8": UnitCost(0.2), "fp16": UnitCost(1.1), "fp32": UnitCost(3.7)},
    add={"int8": UnitCost(0.03), "fp16": UnitCost(0.40), "fp32": UnitCost(0.90)},
)
