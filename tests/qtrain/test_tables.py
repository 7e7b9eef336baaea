"""Layers whose operands are values of a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qtrain import (
    Forward,
    GradInput,
    GradWeight,
    Monitor,
    Recipe,
    cost,
    load_recipe,
    quantize,
    save_recipe,
)
from qtrain.hardware.energy import SZE2017
from qtrain.inspection.inspect import inspect
from quantizers import (
    Quantizer,
    TableFormat,
    blocks,
    dynamic8,
    int8,
    nf4,
    per_channel,
    stochastic,
)

NF4 = Quantizer(format=nf4, granularity=blocks(8))
PLAIN = Quantizer(format=dynamic8)


def of(q: Any, weight: Any) -> Recipe:
    return Recipe(
        name="tables",
        forward=Forward(input=q, weight=weight),
        grad_input=GradInput(grad_output=q),
        grad_weight=GradWeight(grad_output=q),
    )


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layer", [nn.Linear(24, 10), nn.Conv2d(24, 10, 2)], ids=["linear", "conv"])
@pytest.mark.parametrize(
    ("q", "w"),
    [
        (PLAIN, replace(PLAIN, format=nf4, granularity=per_channel())),
        (Quantizer(format=int8), PLAIN),
        (NF4, NF4),
        (replace(NF4, format=dynamic8), replace(NF4, format="e2m1")),
    ],
    ids=["plain", "beside integers", "blocks", "beside e2m1"],
)
def test_products_see_the_values(layer: nn.Module, q: Any, w: Any) -> None:
    x = (normal(6, 24) if isinstance(layer, nn.Linear) else normal(2, 24, 3, 4)).requires_grad_()
    model = quantize(layer, recipe=of(q, w))
    output = model(x)
    weight: Any = layer.weight
    rows = x.detach() if x.dim() == 2 else x.detach().movedim(1, -1)
    values = q(rows).dequantize() if q.granularity.of == "product" else q(x.detach()).dequantize()
    if q.granularity.of == "product" and x.dim() == 4:
        values = values.movedim(-1, 1)
    own = weight.detach().movedim(1, -1) if w.granularity.of == "product" else weight.detach()[None]
    seen = w(own).dequantize()
    seen = seen.movedim(-1, 1) if w.granularity.of == "product" else seen[0]
    twin: Any = type(layer)(*((24, 10) if x.dim() == 2 else (24, 10, 2))).double()
    twin.weight.data, twin.bias.data = seen.double(), layer.bias.detach().double()  # type: ignore[union-attr]
    exact = twin(values.double())
    exact = exact.detach()
    assert float((output.detach() - exact).norm() / exact.norm()) < 1e-6
    output.sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_cost_looks_values_up_for_fp32_units_and_stores_codes() -> None:
    x = normal(8, 64)
    report = cost(
        quantize(nn.Linear(64, 32, bias=False), recipe=of(PLAIN, replace(PLAIN, format=nf4))), x
    )
    forward = report.rows[0]
    assert (forward.a, forward.b) == ("fp32", "fp32")
    assert forward.moved_bytes == 8 * 64 + 4 + 32 * 64 / 2 + 4 + 4 * 8 * 32
    full = SZE2017.unit("fp32", "fp32")
    assert forward.energy_pj == pytest.approx(8 * 64 * 32 * (full.multiply.pj + full.add.pj))


def test_inspection_knows_steps_ends_and_codes() -> None:
    table = TableFormat((-1.0, 0.0, 0.25, 0.5))
    recipe = of(Quantizer(format=table), Quantizer(format=table, rounding=stochastic()))
    model: Any = quantize(nn.Linear(4, 3), recipe=recipe)
    x = torch.tensor([[-1.0, 0.1, 0.2, 0.9]])
    rows = {row.role: row for row in inspect(model, x).rows}
    assert rows["input"].clipped == 0.25 and rows["input"].saturated == 0.5
    with Monitor(model, every=1) as monitor:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for seed in range(3):
            model(normal(5, 4, seed=seed)).sum().backward()
            optimizer.step()
        assert monitor.rows


def test_bf16_units_hold_no_table_and_files_do(tmp_path: Path) -> None:
    own = TableFormat((-1.0, 0.0, 0.25, 0.5), name="mine")
    recipe = of(replace(NF4, format=own), Quantizer(format=nf4))
    assert load_recipe(save_recipe(recipe, tmp_path / "own.yaml")) == recipe
    with pytest.raises(ValueError, match="'bf16' holds 8 significant bits, but grad_output is nf4"):
        Recipe(
            name="x", forward=Forward(input=Quantizer(format=nf4)),
            grad_weight=GradWeight(grad_output=Quantizer(format=nf4), unit="bf16"),
        )  # fmt: skip
