"""What the products of a network cost in hardware, as a table that prints and saves."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

from .energy import multiplier
from .inspection import RESULTS
from .operations import KINDS, Kind
from .report import Report
from .saving import save_rows


@dataclass(frozen=True)
class CostRow:
    """One product of one layer, over all its calls on one batch.

    layer         module path;  product: forward, grad_input, grad_weight
    a, b          formats of its operands, (input, weight), (grad_output, weight) or (grad_output,
                  input): int8 (signed or not), bf16, e4m3, ...
    accumulator   the format its products are summed in
    macs          multiplications, each with an addition; products with padding zeros count
    moved_bytes   both operands read once and the result written once
    stored_bytes  the operand kept for this product since the forward pass; 0 for a forward
    energy_pj     of all multiplications and additions, pJ;  add_pj: of the additions alone
    area_um2      of one unit that multiplies and adds so, um^2
    estimated     "multiply", "add", both or neither: what is not in the energy table
    table         the energy table's name
    """

    layer: str
    product: Kind
    a: str
    b: str
    accumulator: str
    macs: int
    moved_bytes: float
    stored_bytes: float
    energy_pj: float
    add_pj: float
    area_um2: float
    estimated: str
    table: str

    @property
    def unit(self) -> str:
        """The unit that computes it: "int8 + int32"."""
        return f"{multiplier(self.a, self.b)} + {self.accumulator}"

    @property
    def missing(self) -> list[str]:
        """The operations that the energy table lacks: "multiply bf16 x int8", "add int32"."""
        names = {"multiply": multiplier(self.a, self.b), "add": self.accumulator}
        return [f"{operation} {names[operation]}" for operation in self.estimated.split()]

    @property
    def estimated_pj(self) -> float:
        """The part of the energy that is not from the table."""
        parts = {"multiply": self.energy_pj - self.add_pj, "add": self.add_pj}
        return sum(parts[name] for name in self.estimated.split())


@dataclass(frozen=True)
class Trade:
    """The energy of a product beside its error; sqnr_db: as `Row.sqnr_db`."""

    layer: str
    product: Kind
    energy_pj: float
    sqnr_db: float


@dataclass(frozen=True)
class CostReport:
    """Rows in network order.  `print(report)`, `report.rows`, `report.save("cost.csv")`.

    fp32       the rows of the same products with every operand and result in fp32
    outside    module path -> products that are not counted, because they ran outside a layer that
               can be converted;  never_ran: layers that the batch did not reach
    """

    rows: tuple[CostRow, ...]
    fp32: tuple[CostRow, ...]
    outside: Mapping[str, list[str]] = field(default_factory=dict)
    never_ran: Sequence[str] = ()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the rows to a .json or .csv file, atomically.  ValueError for other endings."""
        return save_rows(self.rows, CostRow, path)

    def against(self, errors: Report) -> tuple[Trade, ...]:
        """Each product's energy beside the error of its result, in `errors` of `inspect`.

        A product without such a row (full precision, or an inspection of the forward alone) is left
        out.  Raises ValueError where `errors` has a result that is not among this report's, or
        none at all.
        """
        energy: dict[tuple[str, Kind], float] = {}
        for row in self.rows:
            key = row.layer, row.product
            energy[key] = energy.get(key, 0.0) + row.energy_pj
        products = {role: product for product, role in RESULTS.items()}
        found = {(e.layer, products[e.role]): e for e in errors.rows if e.role in products}
        unknown = [
            f"{layer} {product}" for layer, product in found if (layer, product) not in energy
        ]
        if unknown or not found:
            raise ValueError(
                f"against: the errors' {', '.join(unknown[:4]) or 'report'} has no product among "
                f"the costs; give two reports of one model, and a cost with a backward pass where "
                f"the errors have one"
            )
        return tuple(
            Trade(layer, product, pj, found[layer, product].sqnr_db)
            for (layer, product), pj in energy.items()
            if (layer, product) in found
        )

    def __str__(self) -> str:
        scales = _Scales(self.rows)
        parts = [
            _table("layer", lambda row: row.layer, self.rows, self.fp32, scales),
            _table("product", lambda row: row.product, self.rows, self.fp32, scales),
            self._units(scales),
        ]
        lines = [f"energy and area: {', '.join(dict.fromkeys(r.table for r in self.rows))}"]
        missing = dict.fromkeys(name for row in self.rows for name in row.missing)
        if missing:
            share = _ratio(
                100 * _sum(self.rows, "estimated_pj"), _sum(self.rows, "energy_pj"), ".0f"
            )
            lines.append(f"~ not in that table, estimated: {', '.join(missing)}")
            lines.append(f"  ({share} % of the energy)")
        lines += [
            f"not counted: {path}: {', '.join(names)}" for path, names in self.outside.items()
        ]
        if self.never_ran:
            lines.append(f"never ran: {', '.join(self.never_ran)}")
        return "\n\n".join([*parts, "\n".join(lines)])

    def _units(self, scales: _Scales) -> str:
        """One line for each unit: what an operation costs, and what it was used for."""
        groups: dict[str, list[CostRow]] = {}
        for row in self.rows:
            groups.setdefault(row.unit, []).append(row)
        table = []
        for name, rows in groups.items():
            macs, energy = _sum(rows, "macs"), _sum(rows, "energy_pj")
            mark = "~" if any(row.estimated for row in rows) else ""
            table.append([
                name, scales.macs(macs), f"{mark}{energy / max(macs, 1):.3g}",
                f"{mark}{rows[0].area_um2:.0f}", scales.energy(energy),
            ])  # fmt: skip
        headers = [
            "multiply + add", f"MACs\n{scales.macs.heading}", "pJ a\nMAC", "um2 a\nunit",
            f"energy\n{scales.energy.heading}",
        ]  # fmt: skip
        return _tabulated(table, headers)


def _sum(rows: Sequence[CostRow], name: str) -> float:
    return float(sum(getattr(row, name) for row in rows))


class _Prefix:
    """Writes numbers of one kind in one unit, in which the largest is below 1000."""

    def __init__(self, largest: float, unit: str, prefixes: str) -> None:
        power = 0
        while power + 1 < len(prefixes) and largest >= 1000 ** (power + 1):
            power += 1
        self.factor = 1000.0**power
        name = f"{prefixes[power]}{unit}".strip()
        self.heading = f"({name})" if name else ""

    def __call__(self, value: float) -> str:
        return f"{value / self.factor:.3f}"


class _Scales:
    """The units of a report's columns."""

    def __init__(self, rows: Sequence[CostRow]) -> None:
        self.macs = _Prefix(_sum(rows, "macs"), "", " kMGT")
        self.bytes = _Prefix(_sum(rows, "moved_bytes"), "B", " kMGT")
        self.energy = _Prefix(_sum(rows, "energy_pj"), "J", "pnum")


def _table(
    title: str,
    key: Callable[[CostRow], str],
    rows: Sequence[CostRow],
    fp32: Sequence[CostRow],
    scales: _Scales,
) -> str:
    """Totals of the rows that share a key, of all, and as a ratio to fp32."""
    order: Sequence[str] = list(dict.fromkeys(key(row) for row in rows))
    if title == "product":
        order = [kind for kind in KINDS if kind in order]
    table = [
        _line(
            name, [r for r in rows if key(r) == name], [r for r in fp32 if key(r) == name], scales
        )
        for name in order
    ]
    table.append(_line("total", rows, fp32, scales))
    names = ("moved_bytes", "stored_bytes", "energy_pj")
    ratios = [_ratio(_sum(rows, name), _sum(fp32, name)) for name in names]
    table.append(["total / fp32", "", *ratios, ""])
    headers = [
        title, f"MACs\n{scales.macs.heading}", f"moved\n{scales.bytes.heading}",
        f"stored\n{scales.bytes.heading}", f"energy\n{scales.energy.heading}", "energy\n/ fp32",
    ]  # fmt: skip
    return _tabulated(table, headers)


def _line(
    name: str, rows: Sequence[CostRow], fp32: Sequence[CostRow], scales: _Scales
) -> list[str]:
    energy = _sum(rows, "energy_pj")
    return [
        name,
        scales.macs(_sum(rows, "macs")),
        scales.bytes(_sum(rows, "moved_bytes")),
        scales.bytes(_sum(rows, "stored_bytes")),
        scales.energy(energy),
        _ratio(energy, _sum(fp32, "energy_pj")),
    ]


def _ratio(value: float, whole: float, form: str = ".3f") -> str:
    return f"{value / whole:{form}}" if whole else "-"


def _tabulated(table: list[list[str]], headers: list[str]) -> str:
    """In at most 80 columns: a name that is too long for its own goes on in the next line."""
    columns = [
        max(len(line) for row in [headers, *table] for line in row[i].split("\n"))
        for i in range(1, len(headers))
    ]
    room = 80 - sum(2 + size for size in columns)
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(
        table, headers, tablefmt="simple", colalign=align, disable_numparse=True,
        maxcolwidths=[room, *[None] * (len(headers) - 1)],
    )  # fmt: skip
