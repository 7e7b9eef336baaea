"""Runs that never ran, for the tests of pages: every figure is made up, and the same each time."""

from __future__ import annotations

import math

from qtrain import MonitorRow, Report, Row, TrainConfig
from qtrain.inspection.distributions import VALUE_BINS
from qtrain.inspection.row import OPERAND_ROLES, RESULTS
from qtrain.inspection.row import ROLES as EVERY
from qtrain.training.intervals import Interval
from qtrain.training.record import RunRecord

OPERANDS = [role for role in EVERY if role in OPERAND_ROLES.values()]
ROLES = [role for role in EVERY if role in OPERANDS or role in RESULTS.values()]
#: Text that would do harm in a page that does not escape it.
HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&lt;\u2028\x00\ud800"


def names(count: int) -> list[str]:
    """Module paths, some long."""
    return [f"layer{1 + i // 64}.{i // 2}.conv{1 + i % 2}" for i in range(count)]


def sqnr(i: int, step: int = 0) -> float:
    return 60.0 * ((7 * i + 3 * step) % 97) / 97


def report(layers: list[str]) -> Report:
    """Every role of each layer."""
    return Report(
        tuple(
            Row(layer, role, sqnr(9 * i + j), 0.99, -1e-7, 0.01, 0.5, 0, -1.5, 2.0, 4096)
            for i, layer in enumerate(layers)
            for j, role in enumerate(ROLES)
        )
    )


def monitored(layer: str, i: int, step: int) -> list[MonitorRow]:
    """All roles of a layer at one step."""
    values = tuple((k * (i + 1)) % 53 for k in range(VALUE_BINS))
    codes = tuple((k * (i + 3)) % 61 for k in range(256))
    return [
        MonitorRow(
            step=step, layer=layer, role=role, sqnr_db=sqnr(9 * i + j, step), cosine=0.99,
            bias=1e-6, relative_bias=1e-3, clipped=0.0, zeroed=0.1, saturated=0.0, nonfinite=0,
            low=-1.0, high=2.0, elements=4096, values=values,
            codes=codes if role in OPERANDS else (),
            scale=(0.01, 0.02, 0.03) if role in OPERANDS else None,
        )
        for j, role in enumerate(ROLES)
    ]  # fmt: skip


def record(layers: list[str], *, records: int = 12, name: str = "made-up") -> RunRecord:
    """A finished run of two models in which eight layers take turns, each monitored often."""
    branches = ("baseline", "quantized")
    turns = -(-len(layers) // 8)
    rows = [
        row
        for step in range(records * turns)
        for i, layer in list(enumerate(layers))[step % turns * 8 :][:8]
        for row in monitored(layer, i, step)
    ]
    return RunRecord(
        name=name,
        errors=report(layers),
        measured="one training batch",
        settings=TrainConfig(recipe="banner2018", model="mlp", name="made-up").to_dict(),
        environments=[{"torch": "2.0", "processor": HOSTILE}],
        accuracy={"baseline": 0.9, "quantized": 0.88},
        gap=Interval(value=-0.02, low=-0.03, high=-0.01, n=100, method="made up"),
        steps=[
            {"kind": "step", "step": step, "branch": branch, "loss": 1 / (1 + step), "lr": 0.1,
             "grad_norm": None if step == 700 else 1.0}
            for step in range(0, 5000, 10) for branch in branches
        ],
        epochs=[
            {"kind": "epoch", "epoch": epoch, "step": 1000 * epoch, "branch": branch,
             "train_loss": 1 / epoch, "test_loss": None if epoch == 2 else 2 / epoch,
             "test_accuracy": 0.5 + epoch / 20, "seconds": 3.5}
            for epoch in range(1, 6) for branch in branches
        ],
        monitor=rows,
    )  # fmt: skip


def nonfinite() -> RunRecord:
    """Errors of every kind that is not finite."""
    rows = [
        Row("a", role, value, value, value, 0.0, 0.0, 7, value, value, 10)
        for role, value in zip(ROLES, (math.nan, math.inf, -math.inf), strict=False)
    ]
    return RunRecord(name="broken", errors=Report(tuple(rows)), measured="one batch")
