"""sensitivity: each number is that of separate runs; planted faults come first; nothing moves."""

from __future__ import annotations

import copy
import csv
import json
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from qtrain import SensitivityReport, SensitivityRow, quantize, recipes, sensitivity
from qtrain.diagnosis.parts import BY, PRODUCTS, rounded_parts, switched_off
from qtrain.diagnosis.sensitivity_report import RANKINGS
from qtrain.models.characters import CharTransformer
from qtrain.recipe import GradInput, GradWeight
from quantizers import IntFormat, Quantizer, e4m3, fp16

X = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])
TWO = Quantizer(format=IntFormat(2))


def net(**kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(),
        nn.Linear(72, 16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip
    return quantize(model, **kwargs)


def at(report: SensitivityReport, layer: str, part: str) -> SensitivityRow:
    (row,) = (row for row in report.rows if (row.layer, row.part) == (layer, part))
    return row


class Tied(nn.Module):
    """Two layers of one weight, and one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(75, 75), nn.Linear(75, 75)
        self.second.weight = self.first.weight
        self.twice = nn.Linear(75, 75)
        self.last = nn.Linear(75, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x.flatten(1)).relu()).relu()
        return self.last(self.twice(self.twice(x).relu()))


def parametrized() -> nn.Module:
    torch.manual_seed(0)
    own = parametrizations.weight_norm(nn.Linear(75, 8))
    return nn.Sequential(nn.Flatten(), own, nn.ReLU(), nn.Linear(8, 4))


def attention() -> nn.Module:
    torch.manual_seed(0)

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.MultiheadAttention(15, 3, batch_first=True)
            self.head = nn.Linear(15, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x.reshape(-1, 5, 15)
            return self.head(self.block(x, x, x, need_weights=False)[0].mean(1))

    return Attends()


def fused() -> nn.Module:
    """Norm, ReLU and layer are one pass (QSequential)."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()
    )  # fmt: skip


#: its own, wider quantizers for every operand of the backward products, outputs in 8 bits
ALL_ROLES = replace(
    recipes.int8(bits=4),
    grad_input=GradInput(grad_output=Quantizer(format=IntFormat(5)), weight=TWO),
    grad_weight=GradWeight(
        grad_output=Quantizer(format=IntFormat(5)), input=Quantizer(format=IntFormat(6))
    ),
    activation=e4m3,
)
CASES = {
    "stochastic": lambda: net(bits=4, norm="range"),
    "fused": lambda: quantize(fused(), bits=4, norm="range"),
    "all roles": lambda: net(recipe=ALL_ROLES),
    "shared weight": lambda: quantize(Tied(), bits=4),
    "parametrized": lambda: quantize(parametrized(), recipe=ALL_ROLES),
    "attention": lambda: quantize(attention(), bits=5),
}


def measured(model: nn.Module, off: list[tuple[str, str]]) -> tuple[float, Tensor]:
    """(loss, whole gradient in fp64) of the model's next step with these parts off."""
    twin = copy.deepcopy(model)
    torch.manual_seed(7)
    with switched_off(twin, off):
        loss = F.cross_entropy(twin(X), TARGETS)
        loss.backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in twin.parameters()]
    return loss.item(), torch.cat([g.flatten().double() for g in grads])


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_each_number_is_that_of_a_run_of_its_own(make: Any, by: str) -> None:
    model = make()
    torch.manual_seed(7)
    report = sensitivity(model, X, TARGETS, by=by)
    parts = list(rounded_parts(model))
    full_loss, full = measured(model, parts)
    loss, quantized = measured(model, [])

    def cosine(gradient: Tensor) -> float:
        return float(F.cosine_similarity(gradient, full, 0))

    assert (report.full_loss, report.loss) == (full_loss, loss)
    assert report.cosine == pytest.approx(cosine(quantized), abs=1e-12)
    assert report.error == pytest.approx(1 / report.cosine**2 - 1)
    expected = dict.fromkeys(
        (layer, {"layer": "all", "product": PRODUCTS[role], "role": role}[by])
        for layer, role in parts
    )
    assert [(row.layer, row.part) for row in report.rows] == list(expected)
    for row in report.rows:
        own = [
            (layer, role)
            for layer, role in parts
            if layer == row.layer and row.part in ("all", PRODUCTS[role], role)
        ]
        restored_loss, restored = measured(model, own)
        alone_loss, alone = measured(model, [part for part in parts if part not in own])
        assert row.gain_loss == pytest.approx(loss - restored_loss, abs=1e-12)
        assert row.gain_cosine == pytest.approx(cosine(restored) - cosine(quantized), abs=1e-12)
        assert row.alone_loss == pytest.approx(alone_loss - full_loss, abs=1e-12)
        assert row.alone_cosine == pytest.approx(cosine(alone), abs=1e-12)
        across = alone - full * (alone @ full / (full @ full))
        tangent = float(across.norm() / (alone @ full / full.norm()))
        assert row.alone_error == pytest.approx(tangent**2, rel=1e-9, abs=1e-14)


def test_the_whole_model_put_back_is_full_precision_and_alone_is_the_whole() -> None:
    torch.manual_seed(0)
    model = quantize(nn.Sequential(nn.Flatten(), nn.Linear(75, 4)), bits=3)
    report = sensitivity(model, X, TARGETS, by="layer")
    (row,) = report.rows
    assert report.cosine + row.gain_cosine == 1.0
    assert report.loss - row.gain_loss == pytest.approx(report.full_loss, abs=1e-15)
    assert (row.alone_cosine, row.alone_error) == (report.cosine, report.error)
    assert row.alone_loss == report.loss - report.full_loss


@pytest.mark.parametrize("where", ["0", "5", "7"])
@pytest.mark.parametrize("ranking", ["gain_cosine", "alone_error"])
def test_a_layer_of_two_bits_comes_first(where: str, ranking: str) -> None:
    report = sensitivity(net(overrides={where: 2}), X, TARGETS, by="layer")
    assert report.worst(1, ranking)[0].layer == where


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        ({"grad_input": GradInput(grad_output=TWO)}, "grad_input"),
        ({"grad_weight": GradWeight(grad_output=TWO)}, "grad_weight"),
        ({"grad_weight": GradWeight(input=TWO)}, "grad_weight"),
    ],
    ids=["grad_input", "grad_weight", "its input"],
)
def test_a_faulty_product_comes_first(fault: Any, part: str) -> None:
    model = net(overrides={"5": replace(recipes.int8(), **fault)})
    report = sensitivity(model, X, TARGETS)
    for ranking in ("gain_cosine", "alone_error"):
        worst = report.worst(1, ranking)[0]
        assert (worst.layer, worst.part) == ("5", part)
    roles = sensitivity(model, X, TARGETS, by="role")
    assert PRODUCTS[roles.worst(1)[0].part] == part


def test_an_attention_is_what_an_override_names() -> None:
    rows = sensitivity(quantize(attention()), X, TARGETS, by="layer").rows
    assert {row.layer: row.module for row in rows} == {
        "block.q_proj": "block", "block.k_proj": "block", "block.v_proj": "block",
        "block.scores": "block", "block.context": "block", "block.out_proj": "block",
        "head": "head",
    }  # fmt: skip
    quantize(attention(), overrides={"block": None})
    (row,) = sensitivity(quantize(nn.Linear(75, 4)), X.flatten(1), TARGETS, by="layer").rows
    assert (row.layer, row.module) == ("(model)", "(model)")


def test_several_batches_are_steps_that_follow_one_another() -> None:
    model = net(bits=4)
    other = X.flip(0) + 0.5
    both = sensitivity(model, X, TARGETS, more=[(other, TARGETS)])
    first = sensitivity(model, X, TARGETS)
    after = copy.deepcopy(model)
    with torch.random.fork_rng():
        after(X)
    second = sensitivity(after, other, TARGETS)
    assert (both.batches, first.batches) == (2, 1)
    assert both.loss == (first.loss + second.loss) / 2
    for row, a, b in zip(both.rows, first.rows, second.rows, strict=True):
        for name in ("gain_cosine", "gain_loss", "alone_cosine", "alone_error", "alone_loss"):
            assert getattr(row, name) == (getattr(a, name) + getattr(b, name)) / 2
    assert "means over 2 batches" in str(both)


def snapshot(model: nn.Module) -> list[Any]:
    return [
        [(k, v.clone()) for k, v in model.state_dict().items()],
        [(n, None if p.grad is None else p.grad.clone()) for n, p in model.named_parameters()],
        [(n, m.training, list(m._forward_hooks), list(m._forward_pre_hooks),
          sorted(vars(m)), getattr(m, "recipe", None)) for n, m in model.named_modules()],
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
    args = (x, TARGETS, lambda y, t: extra * F.cross_entropy(y, t))
    report = sensitivity(model, *args, by="layer", more=[(X, TARGETS)])
    assert same(before, snapshot(model)) and ids == list(map(id, model.modules()))
    assert x.grad is None and extra.grad is None
    assert sensitivity(model, *args, by="layer", more=[(X, TARGETS)]) == report


class Two(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)
        self.reentrant = reentrant

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Any]:
        if self.reentrant is None:
            x = self.first(a)
        else:
            x = checkpoint(self.first, a, use_reentrant=self.reentrant)
        return {"scores": self.second(x + self.first(b)), "other": [a]}


def test_any_call_convention_checkpoints_and_wrappers_give_the_same_report() -> None:
    a, b = (torch.randn(6, 4, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    a.requires_grad_()
    targets = torch.tensor([0, 1, 2] * 2)

    def loss(output: dict[str, Any], targets: Tensor) -> Tensor:
        return F.cross_entropy(output["scores"], targets)

    plain = sensitivity(quantize(Two(None)), (a, b), targets, loss)
    for model, inputs in (
        (quantize(Two(None)), {"b": b, "a": a}),
        (quantize(Two(True)), [a, b]),
        (quantize(Two(False)), (a, b)),
        (nn.DataParallel(quantize(Two(None))), (a, b)),
        (torch.compile(quantize(Two(None)), backend="eager"), (a, b)),
    ):
        assert sensitivity(model, inputs, targets, loss) == plain  # type: ignore[arg-type]
    own = sensitivity(quantize(Two(None)), (a, b), loss=lambda y: loss(y, targets))
    assert own == plain and a.grad is None


def test_a_loss_that_is_not_finite_is_a_nan_that_comes_first(tmp_path: Any) -> None:
    x = X.clone()
    x[0, 0, 0, 0] = float("nan")
    report = sensitivity(net(), x, TARGETS, by="layer")
    assert math.isnan(report.loss) and math.isnan(report.worst(1)[0].gain_cosine)
    assert "nan" in str(report) and " *" in str(report)
    rows = json.loads(report.save(tmp_path / "r.json").read_text())
    assert rows[0]["gain_loss"] == "nan"


def test_the_report_prints_in_80_columns_ranks_and_saves(tmp_path: Any) -> None:
    torch.manual_seed(0)
    tall = nn.Sequential(nn.Flatten(), nn.Linear(75, 72))
    tall.add_module("a_layer_with_a_name_that_goes_on_and_on_and_on_and_on", nn.Linear(72, 4))
    report = sensitivity(quantize(tall, bits=4), X, TARGETS, by="role", more=[(X, TARGETS)])
    for text in (str(report), report.table(2)):
        assert max(map(len, text.splitlines())) <= 80
    assert all(str(report).count(row.part) >= 2 for row in report.rows)
    worst = report.worst(1)[0]
    assert " ".join(str(report).split()).startswith(f"'{worst.layer} {worst.part}' does most harm:")
    assert "2 batches" in str(report)
    for ranking in RANKINGS:
        ranked = [getattr(row, ranking) for row in report.worst(99, ranking)]
        assert ranked == sorted(ranked, reverse=True) and len(ranked) == len(report.rows)
    rows = json.loads(report.save(tmp_path / "r.json").read_text())
    with open(report.save(str(tmp_path / "r.csv")), newline="") as file:
        table = list(csv.DictReader(file))
    for row, a, b in zip(report.rows, rows, table, strict=True):
        assert row == SensitivityRow(**a)
        assert float(b["alone_error"]) == row.alone_error
    with pytest.raises(ValueError, match="did you mean 'gain_cosine'"):
        report.worst(1, "gain_cosin")
    for bad in (0, True):
        with pytest.raises((ValueError, TypeError), match="worst"):
            report.worst(bad)


def test_evaluation_mode_and_other_dtypes() -> None:
    model = net()
    model(X)
    assert sensitivity(model.eval(), X, TARGETS) != sensitivity(model.train(), X, TARGETS)
    for dtype in (torch.float64, torch.bfloat16):
        report = sensitivity(net(bits=4).to(dtype), X.to(dtype), TARGETS, by="layer")
        assert 0.5 < report.cosine < 1


def test_outputs_kept_in_16_bits_reach_layers_that_are_put_back() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(75, 16), nn.ReLU(), nn.Linear(16, 4))
    recipe = replace(recipes.int8(bits=4), activation=fp16, narrow=True)
    model = quantize(plain, recipe=recipe)
    report = sensitivity(model, X, TARGETS, by="layer")
    assert report.full_loss == F.cross_entropy(plain(X), TARGETS).item()
    # the last layer alone in full precision: torch's own, kept in the 16 bits that it was given
    with switched_off(model, [part for part in rounded_parts(model) if part[0] == "3"]):
        output = model(X)
    first = quantize(plain[:2], recipe=recipe)(X).relu()
    assert first.dtype == torch.float16
    assert torch.equal(output, plain[3](first.float()).half())


def frozen() -> nn.Module:
    return net().requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "kwargs", "says"),
    [
        (lambda: nn.Linear(2, 2), {}, "no quantized layer"),
        (lambda: quantize(nn.Linear(2, 2), recipe="fp32"), {}, "a recipe other than fp32"),
        (net, {"by": "products"}, "by: got 'products'.*did you mean 'product'"),
        (net, {"targets": None}, "sensitivity: give targets or loss="),
        (net, {"targets": torch.zeros(6)}, "sensitivity: targets are torch.float32"),
        (net, {"loss": lambda y, t: y}, "sensitivity: the loss must be one number"),
        (frozen, {}, "no parameter of the model gets a gradient"),
        (net, {"more": [X]}, r"more: got a batch of type Tensor, need \(inputs, targets\)"),
    ],
)
def test_what_cannot_be_measured_is_refused(make: Any, kwargs: Any, says: str) -> None:
    given = {"targets": TARGETS, **kwargs}
    with pytest.raises(ValueError, match=says):
        sensitivity(make(), X, **given)


def test_models_of_text_are_measured() -> None:
    torch.manual_seed(0)
    net = CharTransformer(num_classes=11, context=8, width=16, depth=1, heads=2)
    tokens = torch.randint(0, 11, (2, 8))
    report = sensitivity(quantize(net), tokens, tokens, by="layer")
    assert 0.9 < report.cosine < 1
    assert all(row.alone_cosine > 0.9 for row in report.rows)
    modules = {row.layer: row.module for row in report.rows}
    own = {layer: module for layer, module in modules.items() if layer != module}
    (attention,) = set(own.values())
    assert set(own) == {f"{attention}.scores", f"{attention}.context"}
    left = quantize(net, overrides={attention: None})
    assert not {layer for layer, _ in rounded_parts(left)} & set(own)


def test_the_worst_parts_come_first_and_are_marked() -> None:
    gains = (0.1, 0.5, 0.25, -0.1)
    rows = tuple(
        SensitivityRow(f"l{i}", "all", f"l{i}", g, 0, 1, 0, 0) for i, g in enumerate(gains)
    )
    report = SensitivityReport("layer", 1, 1.0, 1.1, 0.4, 1.0, rows)
    names = [line.split()[:2] for line in report.table().splitlines()[3:7]]
    assert names == [["l1", "*"], ["l2", "*"], ["l0", "+0.10000"], ["l3", "-0.10000"]]
    assert "from 0.40000 to 0.90000." in " ".join(str(report).split())
    idle = replace(report, rows=(rows[3],))
    assert str(idle).startswith("No part alone is to blame") and " *" not in idle.table()
    assert str(replace(report, rows=())).startswith("Nothing was measured.")
