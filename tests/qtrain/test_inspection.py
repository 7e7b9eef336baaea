"""inspect: right numbers, planted faults found, nothing touched."""

from __future__ import annotations

import copy
import csv
import json
import math
import random
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from qtrain import Forward, GradInput, GradWeight, Recipe, Report, Row, inspect, quantize, recipes
from quantizers import IntFormat, Quantizer, bf16, minmax

INT8 = Quantizer(format=IntFormat(8))
RECIPE = replace(recipes.int8(), grad_input=GradInput(grad_output=INT8))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def net(**kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(),
        nn.Linear(72, 16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip
    return quantize(model, **kwargs)


X, TARGETS = normal(6, 3, 5, 5, seed=1), torch.tensor([0, 1, 2, 3, 0, 1])


def at(report: Report, layer: str, role: str) -> Row:
    (row,) = (row for row in report.rows if (row.layer, row.role) == (layer, role))
    return row


def measured(exact: Tensor, found: Tensor) -> tuple[float, float, float]:
    """(SQNR in dB, cosine, mean signed error), in fp64."""
    x, q = exact.detach().double().flatten(), found.detach().double().flatten()
    error = q - x
    return (
        10 * math.log10(float(x @ x / (error @ error))),
        float(F.cosine_similarity(x, q, 0)),
        float(error.mean()),
    )


def test_every_number_of_a_small_case_is_the_definitions() -> None:
    """One linear layer, weights per tensor: each role computed here from the quantizers."""
    torch.manual_seed(0)
    plain = nn.Linear(12, 5)
    affine = Quantizer(format=IntFormat(8, signed=False, symmetric=False), range=minmax)
    recipe = Recipe(
        name="small",
        forward=Forward(input=affine, weight=INT8),
        grad_input=GradInput(grad_output=Quantizer(format=IntFormat(4))),
        grad_weight=GradWeight(grad_output=Quantizer(format=bf16, range=None)),
    )
    x, grad = normal(7, 12, seed=1), normal(7, 5, seed=2)
    w = plain.weight.detach()
    model = nn.Sequential(nn.Linear(12, 12), quantize(plain, recipe=recipe))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(12))
        model[0].bias.zero_()
    report = inspect(model, x, loss=lambda y: (y * grad).sum())

    xq, wq = affine(x).dequantize(), INT8(w[None])[:1][0].float() * INT8(w[None]).scale
    g8, g16 = recipe.grad_input.grad_output(grad).dequantize(), grad.bfloat16().float()
    assert xq.shape == x.shape and wq[0].shape == w.shape
    expected = {
        "input": (x, xq),
        "weight": (w, wq[0]),
        "output": (x @ w.T + plain.bias, xq @ wq[0].T + plain.bias),
        "grad_output (grad_input)": (grad, g8),
        "grad_input": (grad @ w, g8 @ wq[0]),
        "grad_output (grad_weight)": (grad, g16),
        "grad_weight": (grad.T @ x, g16.T @ xq),
    }
    assert [row.role for row in report.rows] == list(expected)
    for row in report.rows:
        exact, found = expected[row.role]
        sqnr, cosine, bias = measured(exact, found)
        assert row.sqnr_db == pytest.approx(sqnr, abs=0.01), row.role
        assert row.cosine == pytest.approx(cosine, abs=1e-5)
        assert row.bias == pytest.approx(bias, abs=1e-5)
        assert row.elements == exact.numel() and row.nonfinite == 0
        assert row.low == pytest.approx(exact.min().item(), rel=1e-5)
        assert row.high == pytest.approx(exact.max().item(), rel=1e-5)
        assert row.zeroed == ((exact != 0) & (found == 0)).double().mean().item()


def test_clipping_and_zeroing_are_fractions_of_the_elements() -> None:
    from quantizers import percentile

    clipping = Quantizer(format=IntFormat(8), range=percentile(0.9))
    coarse = Quantizer(format=IntFormat(2))
    model = quantize(
        nn.Linear(100, 3), recipe=Recipe(name="c", forward=Forward(input=clipping, weight=coarse))
    )
    x = torch.arange(1.0, 101.0)[None] / 100
    report = inspect(model, x)
    q = clipping(x)
    beyond = (x > q.scale.item() * 127.5).double().mean().item()  # type: ignore[union-attr]
    row = at(report, "(model)", "input")
    assert row.clipped == pytest.approx(beyond) and 0.05 < beyond < 0.2
    weight = model.weight.detach()
    zeroed = (weight.abs() < weight.abs().max() / 2).double().mean().item()
    assert at(report, "(model)", "weight").zeroed == pytest.approx(zeroed)


def test_a_folded_scale_is_named() -> None:
    row = at(inspect(net(), X, TARGETS), "5", "grad_output (grad_input)")
    assert "weight's scale" in row.note
    assert "* grad_output times" in str(inspect(net(), X, TARGETS))


@pytest.mark.parametrize("where", ["0", "5", "7"])
def test_a_planted_fault_is_worst(where: str) -> None:
    report = inspect(net(overrides={where: 2}), X, TARGETS)
    assert report.worst(1)[0].layer == where
    assert {row.layer for row in report.worst(3)} == {where}
    rows = report.worst(len(report.rows) + 5)
    assert len(rows) == len(report.rows)
    assert [r.sqnr_db for r in rows] == sorted(r.sqnr_db for r in rows)


@pytest.mark.parametrize(
    ("slot", "role"),
    [
        (Recipe(name="s", forward=Forward(input=Quantizer(format=IntFormat(2)))), "input"),
        (Recipe(name="s", forward=Forward(weight=Quantizer(format=IntFormat(2)))), "weight"),
        (Recipe(name="s", grad_input=GradInput(grad_output=Quantizer(format=IntFormat(2)))),
         "grad_output (grad_input)"),
        (Recipe(name="s", grad_input=GradInput(weight=Quantizer(format=IntFormat(2)))),
         "weight (grad_input)"),
        (Recipe(name="s", grad_weight=GradWeight(grad_output=Quantizer(format=IntFormat(2)))),
         "grad_output (grad_weight)"),
        (Recipe(name="s", grad_weight=GradWeight(input=Quantizer(format=IntFormat(2)))),
         "input (grad_weight)"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_each_slot_has_its_row(slot: Recipe, role: str) -> None:
    report = inspect(net(recipe=slot), X, TARGETS)
    assert at(report, "5", role).sqnr_db < 20
    operands = {"input", "weight", *(r.role for r in report.rows if "grad_" in r.role and "(" in
                r.role)} - {role}  # fmt: skip
    for row in report.rows:
        if row.role in operands and not (role == "input" and row.role == "input (grad_weight)"):
            assert row.sqnr_db == math.inf, row.role


def snapshot(model: nn.Module) -> list[Any]:
    return [
        [(k, v.clone()) for k, v in model.state_dict().items()],
        [(n, None if p.grad is None else p.grad.clone()) for n, p in model.named_parameters()],
        [(n, m.training, list(m._forward_hooks), list(m._forward_pre_hooks),
          list(m._backward_hooks), sorted(vars(m))) for n, m in model.named_modules()],
        random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state(),  # type: ignore
    ]  # fmt: skip


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("gradients", [False, True], ids=["no gradients", "gradients"])
@pytest.mark.parametrize("recipe", ["int8", "banner2018"])
def test_nothing_is_touched(recipe: str, gradients: bool) -> None:
    model = net(recipe=recipe)
    model[5].bias.requires_grad_(False)
    if gradients:
        model(X).sum().backward()
    x = X.clone().requires_grad_()
    extra = torch.ones((), requires_grad=True)
    before, ids = snapshot(model), list(map(id, model.modules()))
    inspect(model, x, TARGETS, loss=lambda y, t: extra * F.cross_entropy(y, t))
    assert same(before, snapshot(model)) and ids == list(map(id, model.modules()))
    assert x.grad is None and extra.grad is None
    assert all(m.probe is None for m in model.modules() if hasattr(m, "probe"))
    # and the next step is the step that would have been
    twin = net(recipe=recipe)
    if gradients:
        twin[5].bias.requires_grad_(False)
    assert inspect(model, X, TARGETS) == inspect(model, X, TARGETS)


def test_it_shows_the_noise_of_the_next_step() -> None:
    model = net()
    first = inspect(model, X, TARGETS)
    torch.manual_seed(123)  # dropout draws; the rounding noise does not
    model(X).sum().backward()
    assert inspect(model, X, TARGETS) != first


def test_without_targets_there_are_forward_roles_only() -> None:
    assert {row.role for row in inspect(net(), X).rows} == {"input", "weight", "output"}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"targets": normal(6, 4)}, r"targets are torch\.float32.*pass loss="),
        ({"targets": [0, 1]}, r"targets are list.*pass loss="),
        ({"loss": lambda y: y}, "the loss must be one number"),
        ({"loss": lambda y: 1.0}, "the loss must be one number"),
    ],
    ids=["float targets", "list targets", "no scalar", "no tensor"],
)
def test_a_loss_that_cannot_be_formed_is_refused(kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inspect(net(), X, **kwargs)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), "off"], ids=["plain", "off"])
def test_a_model_without_a_quantized_layer_is_refused(model: Any) -> None:
    model = quantize(nn.Linear(2, 2), recipe="fp32") if model == "off" else model
    with pytest.raises(ValueError, match="no quantized layer"):
        inspect(model, torch.ones(1, 2))


class Two(nn.Module):
    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 3)
        self.reentrant = reentrant

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Any]:
        if self.reentrant is None:
            x = self.first(a)
        else:
            x = checkpoint(self.first, a, use_reentrant=self.reentrant)
        return {"scores": self.second(x + self.first(b)), "other": [a]}


def loss_of(output: dict[str, Any], targets: Tensor) -> Tensor:
    return F.cross_entropy(output["scores"], targets)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_checkpointed_layers_count_once_forward_and_backward(reentrant: bool) -> None:
    a, b = normal(6, 4).requires_grad_(), normal(6, 4, seed=1)
    targets = torch.tensor([0, 1, 2] * 2)
    plain = inspect(quantize(Two(), recipe=RECIPE), (a, b), targets, loss_of)
    again = inspect(quantize(Two(reentrant), recipe=RECIPE), (a, b), targets, loss_of)
    assert [(r.layer, r.role, r.elements) for r in plain.rows] == [
        (r.layer, r.role, r.elements) for r in again.rows
    ]
    for x, y in zip(plain.rows, again.rows, strict=True):
        assert x.sqnr_db == pytest.approx(y.sqnr_db, abs=1e-6)
    assert at(plain, "first", "input").elements == 2 * 24  # called twice
    assert a.grad is None


def test_inputs_as_tensor_tuple_list_and_mapping_give_the_same_report() -> None:
    model = quantize(Two())
    a, b = normal(6, 4), normal(6, 4, seed=1)
    targets = torch.tensor([0, 1, 2] * 2)
    reports = [
        inspect(model, inputs, targets, loss_of)
        for inputs in ((a, b), [a, b], {"a": a, "b": b}, {"b": b, "a": a})
    ]
    assert all(report == reports[0] for report in reports)


@pytest.mark.parametrize("wrap", ["compile", "data parallel"])
def test_wrappers_are_looked_into(wrap: str) -> None:
    model = quantize(nn.Linear(4, 3))
    wrapped: Any = nn.DataParallel(model)
    if wrap == "compile":
        wrapped = torch.compile(model, backend="eager")
    x, targets = normal(6, 4), torch.tensor([0, 1, 2] * 2)
    assert inspect(wrapped, x, targets) == inspect(model, x, targets)


def test_a_frozen_model_has_forward_roles_and_a_frozen_layer_no_grad_weight() -> None:
    model = net()
    model[5].requires_grad_(False)
    roles = {row.role for row in inspect(model, X, TARGETS).rows if row.layer == "5"}
    assert "grad_input" in roles and "grad_weight" not in roles
    model.requires_grad_(False)
    assert {row.role for row in inspect(model, X, TARGETS).rows} == {"input", "weight", "output"}


def test_the_loss_of_a_model_that_returns_its_own() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            scores = self.fc(x)
            return F.cross_entropy(scores, labels), scores

    inputs = {"x": normal(6, 4), "labels": torch.tensor([0, 1, 2] * 2)}
    report = inspect(quantize(Own()), inputs, loss=lambda output: output[0])
    assert at(report, "fc", "grad_weight").sqnr_db > 30


@dataclass
class Output:
    scores: Tensor
    hidden: tuple[Tensor, ...]


class Reading(NamedTuple):
    scores: Tensor
    hidden: list[Tensor]


class Opaque:
    def __init__(self, scores: Tensor, hidden: Any) -> None:
        self.scores = scores


@pytest.mark.parametrize("kind", [Output, Reading, Opaque], ids=lambda kind: kind.__name__)
def test_outputs_of_any_class_pass_their_gradients_once(kind: Any) -> None:
    class Deep(nn.Module):
        def __init__(self, kind: Any) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)
            self.kind = kind

        def forward(self, x: Tensor) -> Any:
            hidden = self.first(x)
            return self.kind(self.second(hidden), (hidden,))

    x, targets = normal(6, 4), torch.tensor([0, 1, 2] * 2)
    plain = inspect(quantize(Deep(lambda scores, hidden: scores)), x, targets)
    model = quantize(Deep(kind))
    assert inspect(model, x, targets, lambda y, t: F.cross_entropy(y.scores, t)) == plain


def broken() -> Report:
    x = X.clone()
    x[0, 0, 0, 0] = float("nan")
    return inspect(net().eval(), x, TARGETS)


def test_nan_is_counted_comes_first_and_does_not_hide_the_range() -> None:
    report = broken()
    row = at(report, "0", "input")
    assert math.isnan(row.sqnr_db) and math.isnan(row.cosine) and row.nonfinite == X.numel()
    assert row.high == pytest.approx(X.max().item()) and row.low == pytest.approx(X.min().item())
    assert math.isnan(report.worst(1)[0].sqnr_db)
    assert at(report, "0", "weight").sqnr_db > 30
    assert "NaN" in str(report)


@pytest.mark.parametrize("make", [lambda: inspect(net(), X, TARGETS), broken], ids=["good", "nan"])
def test_reports_survive_json_and_csv(make: Any, tmp_path: Any) -> None:
    report = make()
    rows = json.loads(report.save(tmp_path / "r.json").read_text())
    with open(report.save(str(tmp_path / "r.csv")), newline="") as file:
        table = list(csv.DictReader(file))
    assert len(rows) == len(table) == len(report.rows)
    for row, a, b in zip(report.rows, rows, table, strict=True):
        assert (a["layer"], a["role"]) == (b["layer"], b["role"]) == (row.layer, row.role)
        for name in ("sqnr_db", "cosine", "bias", "clipped", "zeroed", "low", "high"):
            for found in (float(a[name]), float(b[name])):
                assert found == getattr(row, name) or math.isnan(found)
        assert a["nonfinite"] == int(b["nonfinite"]) == row.nonfinite
    assert {p.name for p in tmp_path.iterdir()} == {"r.json", "r.csv"}
    with pytest.raises(ValueError, match=r"\.json, \.csv or \.html"):
        report.save(tmp_path / "r.xlsx")
    with pytest.raises(FileNotFoundError):
        report.save(tmp_path / "no" / "r.json")


def test_the_table_is_in_network_order_with_every_row() -> None:
    report = inspect(net(), X, TARGETS)
    layers = [row.layer for row in report.rows]
    assert sorted(set(layers), key=layers.index) == ["0", "5", "7"]
    text = report.table()
    assert len(text.splitlines()) >= len(report.rows) + 2
    for role in {row.role for row in report.rows}:
        assert text.count(role) >= 2
    for bad in (0, -1, True, 1.5):
        with pytest.raises((TypeError, ValueError), match="worst"):
            report.worst(bad)  # type: ignore[arg-type]


def test_evaluation_mode_is_inspected_as_it_is() -> None:
    model = net()
    model(X * 0.1)
    trained, evaluated = inspect(model, X), inspect(model.eval(), X)
    # ranges of the small batch clip the large one
    assert at(trained, "0", "input").clipped == 0 < at(evaluated, "0", "input").clipped


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    report = inspect(net().to(dtype), X.to(dtype), TARGETS)
    assert len(report.rows) == len(inspect(net(), X, TARGETS).rows)
    assert all(row.sqnr_db > 10 for row in report.rows)


def test_empty_batches_have_rows_without_error() -> None:
    report = inspect(quantize(nn.Linear(4, 3)), torch.zeros(0, 4), loss=lambda y: y.sum())
    for row in report.rows:
        assert row.nonfinite == 0 and not math.isnan(row.low)
    assert copy.deepcopy(report) == report


def test_a_language_models_outputs_and_targets_are_flattened() -> None:
    model = quantize(nn.Sequential(nn.Linear(6, 6)))
    x, targets = torch.randn(2, 3, 6), torch.randint(0, 6, (2, 3))
    roles = {row.role for row in inspect(model, x, targets).rows}
    assert "grad_weight" in roles


def test_the_overview_has_a_line_per_layer() -> None:
    model = quantize(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)))
    report = inspect(model, torch.randn(4, 6), torch.randint(0, 3, (4,)))
    lines = report.overview().splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["0", "1"]
