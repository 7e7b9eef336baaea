"""What the products of a network cost in hardware: rows that print, save and join errors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import checks
from ..inspection.report import Report
from ..inspection.roles import RESULTS
from ..products.operations import Kind
from ..reports.rows import save_rows
from .plots import plot_trades
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
        """`against(errors)` as a picture, SQNR against energy, to a PNG or SVG."""
        plot_trades(self.against(errors), Path(path))

    def __str__(self) -> str:
        remarks = [f"not counted: {path}: {', '.join(ops)}" for path, ops in self.outside.items()]
        if self.never_ran:
            remarks.append(f"never ran: {', '.join(self.never_ran)}")
        return cost_tables(self.rows, self.fp32, remarks)
