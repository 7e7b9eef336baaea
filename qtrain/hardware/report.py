"""What the products of a network cost in hardware: rows that print, save and join errors."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import checks
from ..inspection.report import Report
from ..inspection.roles import RESULTS
from ..products.operations import KINDS, Kind
from ..reports.panels import Line, Panel
from ..reports.plots import plot
from ..reports.rows import save_rows
from .row import CostRow, Trade
from .table import cost_tables


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

    def plot(self, errors: Report, path: str | os.PathLike[str]) -> None:
        """`against(errors)` as a picture, SQNR against energy, to a PNG or SVG: one mark a layer
        and product, numbered in network order as the legend lists the layers."""
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
        plot([panel], Path(path), legend=legend)

    def __str__(self) -> str:
        remarks = [f"not counted: {path}: {', '.join(ops)}" for path, ops in self.outside.items()]
        if self.never_ran:
            remarks.append(f"never ran: {', '.join(self.never_ran)}")
        return cost_tables(self.rows, self.fp32, remarks)
