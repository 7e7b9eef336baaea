"""diagnose names a gradient that rounding turns: measured on a batch, or bounded by a record."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from qtrain import (
    Finding,
    Monitor,
    MonitorRow,
    data,
    diagnose,
    quantize,
    recipes,
)
from qtrain.diagnosis.gradient import ASTRAY, with_measured
from qtrain.diagnosis.parts import rounded_parts, switched_off
from qtrain.models.resnet import resnet18
from qtrain.recipe import GradInput
from quantizers import IntFormat, Quantizer

DIGITS = data.load("digits").train
BATCHES = [*data.Batches(DIGITS, batch_size=16, seed=0, epoch=0, drop_last=True)][:8]
X, TARGETS = next(iter(data.Batches(DIGITS, batch_size=64, seed=0, epoch=0)))
NEAREST = replace(
    recipes.int8(bits=4), grad_input=GradInput(grad_output=Quantizer(format=IntFormat(4)))
)


def net() -> nn.Module:
    torch.manual_seed(0)
    return resnet18(num_classes=10, in_channels=1, stem="cifar", width=4)


@cache
def trained(kind: str) -> tuple[nn.Module, Monitor]:
    recipe: Any = {"int4": recipes.int8(bits=4), "nearest": NEAREST}.get(kind, kind)
    model = quantize(net(), recipe=recipe)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    with Monitor(model, every=4, layers=None) as monitor:
        for images, labels in BATCHES:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model, monitor


def cosine_by_hand(model: nn.Module) -> float:
    """Of the gradient on the batch, as it is and with every rounded part off, on twins."""
    gradients = []
    for off in ([], rounded_parts(model)):
        own = copy.deepcopy(model)
        own.zero_grad()
        with switched_off(own, off):
            nn.functional.cross_entropy(own(X), TARGETS).backward()
        gradients.append(torch.cat([p.grad.flatten().double() for p in own.parameters()]))  # type: ignore[union-attr]
    return float(nn.functional.cosine_similarity(*gradients, dim=0))


def astray(findings: tuple[Finding, ...]) -> list[Finding]:
    return [finding for finding in findings if finding.symptom == ASTRAY]


@pytest.mark.cases(1, 2)
@pytest.mark.parametrize("kind", ["nearest", "int4"])
def test_a_gradient_of_four_bits_is_told_first_and_what_it_means(kind: str) -> None:
    model, monitor = trained(kind)
    for measures in (False, True):
        batch = {"model": model, "inputs": X, "targets": TARGETS} if measures else {}
        verdict = diagnose(monitor, **batch)  # type: ignore[arg-type]
        (first,) = astray(verdict.findings)
        assert verdict.findings[0] is first and (first.layer, first.role) == ("(model)", "gradient")
        cosine = 1 / math.sqrt(1 + first.value)
        if measures:
            assert cosine == pytest.approx(cosine_by_hand(model))
            assert f"the gradient's cosine, {cosine:.5f}" in verdict.checked
            assert (first.threshold, first.last) == (1 / 3, 4)
        across = round(100 * math.sqrt(1 - cosine**2))
        assert f"is {cosine:.2f}: the noise has {first.value:.3g} times" in first.cause
        assert f"{across} % of the step's length goes elsewhere" in first.cause
        assert "by='role', to=8" in first.remedy
        assert ("a skip connection" in first.cause) == (not measures)


@pytest.mark.cases(1, 3)
@pytest.mark.parametrize("kind", ["int8", "fp8", "mxfp8"])
def test_a_gradient_of_eight_bits_is_not(kind: str) -> None:
    model, monitor = trained(kind)
    assert not astray(diagnose(monitor).findings)
    verdict = diagnose(monitor, model=model, inputs=X, targets=TARGETS)
    assert not astray(verdict.findings)
    assert ASTRAY in verdict.rules and "the gradient's cosine, 0." in verdict.checked


def record(*errors: float) -> list[MonitorRow]:
    """Layers whose grad_input has these tan^2, in three records that take turns."""
    return [
        MonitorRow(
            step=step, layer=f"layer{i}", role="grad_input", sqnr_db=30.0,
            cosine=-0.1 if e == math.inf else 1 / math.sqrt(1 + e), bias=0.0, clipped=0.0,
            zeroed=0.0, nonfinite=0, low=-1.0, high=1.0, elements=64,
        )
        for step in range(3 * len(errors)) for i, e in enumerate(errors) if step % len(errors) == i
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ([0.11] * 10, 1.1),
        ([0.09] * 10, None),  # less noise than gradient
        ([0.02] * 100, None),  # many layers with little each, which skip connections pass by
        ([1.5] + [0.01] * 9, None),  # one layer's, which has findings of its own
        ([math.inf, math.inf, 0.2], math.inf),
    ],
)
def test_a_record_tells_where_layers_add_up_to_as_much_noise_as_gradient(
    errors: list[float], told: float | None
) -> None:
    found = astray(diagnose(record(*errors)).findings)
    assert [f.value for f in found] == ([] if told is None else [pytest.approx(told)])


def test_what_is_measured_stands_in_place_of_what_the_record_bounds() -> None:
    model = quantize(net(), bits=8)
    verdict = diagnose(record(*[0.5] * 9), model=model, inputs=X, targets=TARGETS)
    assert astray(diagnose(record(*[0.5] * 9)).findings) and not astray(verdict.findings)


def test_a_batch_without_a_model_is_refused() -> None:
    with pytest.raises(ValueError, match="diagnose: got a batch, but no model="):
        diagnose(record(0.1), inputs=X, targets=TARGETS)
    with pytest.raises(ValueError, match="diagnose: give targets or loss="):
        diagnose(record(0.1), model=quantize(net(), bits=8), inputs=X)


def test_a_measured_gradient_is_astray_from_as_much_noise_on_or_a_third_with_a_records() -> None:
    noisy, sound = diagnose(record(*[0.5] * 9)), diagnose(record(*[0.001] * 9))
    for verdict, error, told in (
        (noisy, 0.3, 0),
        (noisy, 0.4, 1),
        (sound, 0.9, 0),
        (sound, 1.1, 1),
    ):
        found = with_measured(verdict, 1 / math.sqrt(1 + error), 2, 7)
        assert len(astray(found.findings)) == told
    (lost,) = astray(with_measured(sound, -0.2, 1, 7).findings)
    assert "nothing of it is left" in lost.cause and lost.severity > 2
