"""What the products of a network cost in hardware: rows that print, save and join errors."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .. import checks
from ..inspection.report import Report
from ..inspection.row import RESULTS
from ..products.operations import KINDS, Kind
from ..reports.plots import Line, Panel, plot
from ..reports.rows import save_rows
from ..reports.table import Table, wrapped
from .energy import multiplier

if TYPE_CHECKING:
    from ..reports.plots import Axes, Figure, Place

#: Heading, field, its unit and its prefixes, of the columns of a table.
_COLUMNS = (
    ("MACs", "macs", "", " kMGT"),
    ("moved", "moved_bytes", "B", " kMGT"),
    ("stored", "stored_bytes", "B", " kMGT"),
    ("energy", "energy_pj", "J", "pnum"),
)


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
    outside    module path -> products that have no row, because they ran outside a layer that can
               be converted;  never_ran: layers that the batch did not reach
    simulated  MACs of the rows that follow a recipe; the others are off, or left
    rowless    MACs that have no row, of what ran outside or is constant: of the forward, and where
               a gradient flows as many again for each of two backward products
    uncounted  operations whose MACs are not known
    """

    rows: tuple[CostRow, ...]
    fp32: tuple[CostRow, ...]
    outside: Mapping[str, list[str]] = field(default_factory=dict)
    never_ran: Sequence[str] = ()
    simulated: int = 0
    rowless: int = 0
    uncounted: Sequence[str] = ()

    @property
    def share(self) -> float:
        """Of all MACs, those that have no row too, the ones that follow a recipe, from 0 to 1."""
        return self.simulated / max(sum(row.macs for row in self.rows) + self.rowless, 1)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the rows to a .json or .csv file, atomically.  ValueError for other endings."""
        return save_rows(self.rows, CostRow, path)

    def against(self, errors: Report) -> tuple[Trade, ...]:
        """Each product's energy beside the error of its result, in `errors` of `inspect`.

        A product without such a row (full precision, or an inspection of the forward alone) is left
        out.  Raises ValueError where `errors` has a result that is not among this report's, or
        none at all.
        """
        checks.instance("errors", errors, Report, "what inspect() returns")
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

    def plot(self, errors: Report, path: Place = None, *, ax: Axes | None = None) -> Figure:
        """`against(errors)`, SQNR against energy: a mark a layer and product, numbered as the
        legend lists layers; to a PNG or SVG where a path is given, into `ax` where one is."""
        trades = self.against(errors)
        layers = list(dict.fromkeys(trade.layer for trade in trades))
        lines = []
        for product in KINDS:
            # an error of zero has an infinite SQNR, which no axis shows
            shown = [t for t in trades if t.product == product and math.isfinite(t.sqnr_db)]
            shown.sort(key=lambda trade: (trade.energy_pj, trade.sqnr_db))
            points = [(trade.energy_pj / 1e6, trade.sqnr_db) for trade in shown]
            names = [str(layers.index(trade.layer) + 1) for trade in shown]
            lines.append(Line(label=product, points=points, names=names, marks=True, joined=False))
        panel = Panel(
            title="", unit="SQNR in dB (higher is better)",
            x="energy of the product's multiply-adds in µJ (lower is better)", lines=lines, log="x",
        )  # fmt: skip
        legend = [f"{number} {layer}" for number, layer in enumerate(layers, 1)]
        return plot([panel], path, ax=ax, legend=legend)

    def __str__(self) -> str:
        remarks = [f"{100 * self.share:.1f} % of the multiply-adds follow a recipe"]
        remarks += [f"in no row: {path}: {', '.join(ops)}" for path, ops in self.outside.items()]
        if self.uncounted:
            remarks.append(f"not counted: {', '.join(self.uncounted)}")
        if self.never_ran:
            remarks.append(f"never ran: {', '.join(self.never_ran)}")
        ordered = sorted(self.rows, key=lambda row: KINDS.index(row.product))
        return "\n\n".join([
            self._table("layer", self.rows),
            self._table("product", ordered),
            self._units(),
            "\n".join(part for note in [*self._origin(), *remarks] for part in wrapped(note)),
        ])  # fmt: skip

    def _table(self, title: str, ordered: Sequence[CostRow]) -> str:
        """Totals of the rows that share a layer or product, of all, and as a ratio to fp32."""
        scales, full = self._scales(), _grouped(self.fp32, title)
        groups = [(name, own, full[name]) for name, own in _grouped(ordered, title).items()]
        lines = []
        for name, own, exact in [*groups, ("total", ordered, self.fp32)]:
            cells = [_scaled(_sum(own, of), scales[of]) for _, of, _, _ in _COLUMNS]
            lines.append([name, *cells, _ratio(_sum(own, "energy_pj"), _sum(exact, "energy_pj"))])
        ratios = [_ratio(_sum(self.rows, n), _sum(self.fp32, n)) for _, n, _, _ in _COLUMNS[1:]]
        lines.append(["total / fp32", "", *ratios, ""])
        headings = [f"{heading}\n{scales[of][1]}" for heading, of, _, _ in _COLUMNS]
        return Table(headers=[title, *headings, "energy\n/ fp32"], lines=lines).text()

    def _units(self) -> str:
        """One line for each unit: what an operation costs, and what it was used for."""
        scales, lines = self._scales(), []
        for name, group in _grouped(self.rows, "unit").items():
            macs, energy = _sum(group, "macs"), _sum(group, "energy_pj")
            mark = "~" if any(row.estimated for row in group) else ""
            each = f"{mark}{energy / max(macs, 1):.3g}"
            cells = [_scaled(macs, scales["macs"]), each, _scaled(energy, scales["energy_pj"])]
            lines.append([name, *cells])
        heads = [f"MACs\n{scales['macs'][1]}", "pJ a\nMAC", f"energy\n{scales['energy_pj'][1]}"]
        return Table(headers=["multiply + add", *heads], lines=lines).text()

    def _scales(self) -> dict[str, tuple[float, str]]:
        """Of each column the factor of the unit in which the total is below 1000, and its name."""
        found = {}
        for _, name, unit, prefixes in _COLUMNS:
            total = _sum(self.rows, "moved_bytes" if unit == "B" else name)
            power = 0
            while power + 1 < len(prefixes) and total >= 1000 ** (power + 1):
                power += 1
            text = f"{prefixes[power]}{unit}".strip()
            found[name] = 1000.0**power, f"({text})" if text else ""
        return found

    def _origin(self) -> list[str]:
        """Where the energies come from."""
        lines = [f"energy: {', '.join(dict.fromkeys(row.table for row in self.rows))}"]
        missing = dict.fromkeys(name for row in self.rows for name in row.missing)
        if missing:
            energy = _sum(self.rows, "energy_pj")
            share = _ratio(100 * _sum(self.rows, "estimated_pj"), energy, ".0f")
            names = ", ".join(missing)
            lines.append(f"~ not in that table, estimated: {names} ({share} % of the energy)")
        return lines


def _grouped(rows: Sequence[CostRow], name: str) -> dict[str, list[CostRow]]:
    """The rows by a field of theirs."""
    groups: dict[str, list[CostRow]] = {}
    for row in rows:
        groups.setdefault(getattr(row, name), []).append(row)
    return groups


def _sum(rows: Sequence[CostRow], name: str) -> float:
    return float(sum(getattr(row, name) for row in rows))


def _scaled(value: float, scale: tuple[float, str]) -> str:
    return f"{value / scale[0]:.3f}"


def _ratio(value: float, whole: float, form: str = ".3f") -> str:
    return f"{value / whole:{form}}" if whole else "-"
