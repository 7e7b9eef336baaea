"""One product's cost in hardware."""

from __future__ import annotations

from dataclasses import dataclass

from ..products.operations import Kind
from .energy import multiplier


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
