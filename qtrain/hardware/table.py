"""What a network costs, as text of 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..products.operations import KINDS
from ..reports.table import Table, wrapped
from .row import CostRow


def cost_tables(rows: Sequence[CostRow], fp32: Sequence[CostRow], remarks: Sequence[str]) -> str:
    """Totals by layer, by product and by unit, also as ratios to fp32, and remarks below."""
    scales = _Scales(rows)
    ordered = sorted(rows, key=lambda row: KINDS.index(row.product))
    notes = [*_origin(rows), *remarks]
    return "\n\n".join([
        _table("layer", lambda row: row.layer, rows, fp32, scales),
        _table("product", lambda row: row.product, ordered, fp32, scales),
        _units(rows, scales),
        "\n".join(part for note in notes for part in wrapped(note)),
    ])  # fmt: skip


def _origin(rows: Sequence[CostRow]) -> list[str]:
    """Where the energies come from."""
    lines = [f"energy: {', '.join(dict.fromkeys(row.table for row in rows))}"]
    missing = dict.fromkeys(name for row in rows for name in row.missing)
    if missing:
        share = _ratio(100 * _sum(rows, "estimated_pj"), _sum(rows, "energy_pj"), ".0f")
        names = ", ".join(missing)
        lines.append(f"~ not in that table, estimated: {names} ({share} % of the energy)")
    return lines


def _units(rows: Sequence[CostRow], scales: _Scales) -> str:
    """One line for each unit: what an operation costs, and what it was used for."""
    table = []
    for name, group in _grouped(rows, lambda row: row.unit).items():
        macs, energy = _sum(group, "macs"), _sum(group, "energy_pj")
        mark = "~" if any(row.estimated for row in group) else ""
        table.append([
            name, scales.macs(macs), f"{mark}{energy / max(macs, 1):.3g}", scales.energy(energy),
        ])  # fmt: skip
    headers = [
        "multiply + add", f"MACs\n{scales.macs.heading}", "pJ a\nMAC",
        f"energy\n{scales.energy.heading}",
    ]  # fmt: skip
    return Table(headers=headers, lines=table).text()


def _grouped(rows: Sequence[CostRow], key: Callable[[CostRow], str]) -> dict[str, list[CostRow]]:
    groups: dict[str, list[CostRow]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


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
    groups, full = _grouped(rows, key), _grouped(fp32, key)
    table = [_line(name, group, full[name], scales) for name, group in groups.items()]
    table.append(_line("total", rows, fp32, scales))
    names = ("moved_bytes", "stored_bytes", "energy_pj")
    ratios = [_ratio(_sum(rows, name), _sum(fp32, name)) for name in names]
    table.append(["total / fp32", "", *ratios, ""])
    headers = [
        title, f"MACs\n{scales.macs.heading}", f"moved\n{scales.bytes.heading}",
        f"stored\n{scales.bytes.heading}", f"energy\n{scales.energy.heading}", "energy\n/ fp32",
    ]  # fmt: skip
    return Table(headers=headers, lines=table).text()


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
