"""One broken quantizer in a ResNet-18: the verdict on the run's record names it first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fault_cases import FAULTS, LAYERS, Healthy, Planted, backward_role, recipe_with

from qtrain import diagnose


@pytest.fixture(scope="module")
def healthy() -> Healthy:
    return Healthy()


def case(layer: str, way: str) -> str:
    return "input" if way == "forward" else backward_role(layer)


@pytest.mark.cases(3, 24)
@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_ranked_first(
    healthy: Healthy, tmp_path: Path, fault: str, layer: str, way: str
) -> None:
    make, symptoms = FAULTS[fault]
    role = case(layer, way)
    broken = recipe_with(make(way == "backward"), role)
    file = healthy.run({layer: broken}).save(tmp_path / "monitor.jsonl")
    verdict = diagnose(file)
    first = verdict.findings[0]
    assert (first.layer, first.role) == (layer, role), str(verdict)
    assert first.symptom in symptoms
    # no other layer is at fault, but where nothing reaches it
    assert fault == "dead scale" or {f.layer for f in verdict.findings} == {layer}, str(verdict)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_weight_is_ranked_first(healthy: Healthy, fault: str) -> None:
    make, symptoms = FAULTS[fault]
    broken = make(False)
    if broken.shared is not None:
        broken.shared = 1  # of (groups, out, in, *kernel): one group has nothing to share
    verdict = diagnose(healthy.run({"layer2.0.conv1": recipe_with(broken, "weight")}))
    first = verdict.findings[0]
    assert (first.layer, first.role) == ("layer2.0.conv1", "weight"), str(verdict)
    assert first.symptom in symptoms


@pytest.mark.parametrize(
    ("layer", "role", "noise"),
    [
        ("layer1.0.conv2", "input", False),
        ("layer1.0.conv2", "weight", False),
        ("layer1.0.conv2", "grad_output (grad_input)", True),
        ("fc", "input", False),
        ("fc", "weight", False),
    ],
)
def test_a_bias_of_a_fiftieth_of_a_step_is_found(
    healthy: Healthy, layer: str, role: str, noise: bool
) -> None:
    """0.02 steps, four records; fc's own gradient has 320 elements, too few for it."""
    verdict = diagnose(healthy.run({layer: recipe_with(Planted(noise, bias=0.02), role)}))
    found = [(f.layer, f.role, f.symptom) for f in verdict.findings]
    assert found == [(layer, role, "biased rounding")]


@pytest.mark.parametrize("noise", [False, True], ids=["nearest", "stochastic"])
def test_the_same_quantizer_unbroken_is_no_alarm(healthy: Healthy, noise: bool) -> None:
    recipe = None
    for role in ("input", "weight", "grad_output (grad_input)"):
        recipe = recipe_with(Planted(noise), role, recipe)
    verdict = diagnose(healthy.run({layer: recipe for layer in LAYERS if layer != "conv1"}))
    assert not verdict, str(verdict)


@pytest.mark.cases(2, 4)
@pytest.mark.parametrize(
    "options", [{"bits": 8, "norm": "range"}, {"recipe": "banner2018"}], ids=["int8", "banner2018"]
)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_healthy_run_is_no_alarm(seed: int, options: dict[str, Any]) -> None:
    verdict = diagnose(Healthy(seed=seed, steps=2, **options).run(steps=9, every=2))
    assert not verdict, str(verdict)
    assert str(verdict).startswith("nothing is wrong in 21 layers, 145 tensors, 5 records")
