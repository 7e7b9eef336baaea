"""recommend: greedy by error per cost, measured, and widened further where it misses."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qtrain import (
    Recipe,
    SensitivityReport,
    SensitivityRow,
    cost,
    quantize,
    recipes,
    recommend,
    sensitivity,
    set_recipe,
)
from qtrain.diagnosis.widening import TRIALS, greedy
from qtrain.inspection.row import OPERAND_ROLES
from qtrain.recipe import SLOTS, GradInput
from quantizers import IntFormat, Quantizer

X = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(1))
TARGETS = torch.arange(16) % 4
#: no noise: a model with another set of layers is quantized with the same bits in the others
NEAREST = replace(
    recipes.int8(bits=4), grad_input=GradInput(grad_output=Quantizer(format=IntFormat(5)))
)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip


def additive(errors: list[float]) -> SensitivityReport:
    """A report of a model whose errors add up."""
    rows = tuple(
        SensitivityRow(f"layer{i}", "all", f"layer{i}", 0.0, 0.0, 1 / math.sqrt(1 + e), e, 0.0)
        for i, e in enumerate(errors)
    )
    total = sum(errors)
    return SensitivityReport("layer", 1, 1.0, 1.0, 1 / math.sqrt(1 + total), total, rows)


ERRORS = st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=8)


@given(ERRORS, st.data(), st.floats(0.3, 0.9999))
def test_the_set_is_the_cheapest_but_for_one_layer(
    errors: list[float], draw: Any, goal: float
) -> None:
    costs = draw.draw(st.lists(st.floats(0.1, 10.0), min_size=len(errors), max_size=len(errors)))
    report, names = additive(errors), [f"layer{i}" for i in range(len(errors))]
    budget = 1 / goal**2 - 1
    best = min(
        sum(costs[i] for i in taken)
        for n in range(len(errors) + 1)
        for taken in itertools.combinations(range(len(errors)), n)
        if sum(e for i, e in enumerate(errors) if i not in taken) <= budget
    )
    try:
        found = recommend(report, goal, dict(zip(names, costs, strict=True)))
    except ValueError as error:
        assert "every layer" in str(error)
        assert min(errors) > budget * (1 - 1e-9)
        return
    taken = [names.index(name) for name in found.overrides]
    spent = sum(costs[i] for i in taken)
    if taken:
        first = min(taken, key=lambda i: errors[i] / costs[i])
        assert spent <= best + costs[first] + 1e-9
    assert found.cost_share == pytest.approx(spent / sum(costs))
    left = sum(e for name, e in zip(names, errors, strict=True) if name not in found.overrides)
    assert found.predicted == pytest.approx(1 / math.sqrt(1 + left))
    assert found.predicted >= goal * (1 - 1e-9)
    assert all(left + errors[i] > budget * (1 - 1e-9) for i in taken)  # none could stay too


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.data())
def test_of_layers_that_cost_the_same_the_fewest_of_most_error(
    errors: list[int], draw: Any
) -> None:
    budget = draw.draw(st.integers(0, sum(errors)))
    named = {str(i): float(error) for i, error in enumerate(errors)}
    taken = greedy(named, dict.fromkeys(named, 1.0), budget)
    left = sorted(errors)
    while sum(left) > budget:
        left.pop()  # the largest
    assert sorted(e for i, e in enumerate(errors) if str(i) not in taken) == left


def test_layers_stay_by_their_error_per_cost() -> None:
    errors = {"a": 0.4, "b": 0.3, "c": 0.3, "d": math.inf, "e": 0.1, "f": 0.0}
    costs = {"a": 8.0, "b": 1.0, "c": 2.0, "d": 9.0, "e": 0.0, "f": 0.0}
    assert greedy(errors, costs, 0.5) == ("b", "c", "d")  # e fits where b and c do not
    assert greedy(errors, costs, 0.7) == ("b", "d", "e")
    assert greedy(errors, costs, 0.0) == ("a", "b", "c", "d", "e")


def test_without_costs_layers_count_alike_and_with_a_report_by_multiply_adds() -> None:
    model = quantize(plain(), recipe=NEAREST)
    report = sensitivity(model, X, TARGETS)
    costs = cost(model, X)
    alike, by_macs = recommend(report, 0.99), recommend(report, 0.99, costs)
    assert alike.unit == "layers" and alike.cost_share == len(alike.overrides) / 4
    assert len(alike.overrides) <= len(by_macs.overrides)
    macs = {row.layer: 0 for row in costs.rows}
    for row in costs.rows:
        macs[row.layer] += row.macs
    share = sum(macs[name] for name in by_macs.overrides) / sum(macs.values())
    assert by_macs.cost_share == pytest.approx(share)
    assert by_macs.cost_share <= sum(macs[name] for name in alike.overrides) / sum(macs.values())


@pytest.mark.parametrize("by", ["layer", "product", "role"])
@pytest.mark.parametrize("part", [0.9, 0.5, 0.2])
def test_the_measured_cosine_is_that_of_quantize_with_the_overrides(by: str, part: float) -> None:
    model = quantize(plain(), recipe=NEAREST)
    batch: Any = {"inputs": X, "targets": TARGETS, "more": [(X.flip(0) * 2, TARGETS)]}
    report = sensitivity(model, X, TARGETS, by=by, more=batch["more"])
    goal = 1 / math.sqrt(1 + part * (1 / report.cosine**2 - 1))
    found = recommend(report, goal, model=model, **batch)
    assert found.measured is not None and found.measured >= goal > report.cosine
    again = quantize(plain(), recipe=NEAREST, overrides=found.overrides)
    once = sensitivity(again, X, TARGETS, by="layer", more=batch["more"])
    assert once.cosine == pytest.approx(found.measured, abs=1e-9)
    assert (found.widened, found.predicted, found.measured) in found.trials


@pytest.mark.parametrize("shrink", [0.3, 1e-3])
def test_where_a_prediction_misses_more_is_widened(shrink: float) -> None:
    model = quantize(plain(), recipe=NEAREST)
    report = sensitivity(model, X, TARGETS, by="layer")
    rows = tuple(replace(row, alone_error=row.alone_error * shrink) for row in report.rows)
    goal = 1 / math.sqrt(1 + 0.2 * report.error)
    found = recommend(replace(report, rows=rows), goal, model=model, inputs=X, targets=TARGETS)
    assert found.measured is not None and found.measured >= goal
    assert len({one.widened for one in found.trials}) == len(found.trials) <= TRIALS + 3
    assert "by how many layers are wider" in str(found)


@pytest.mark.parametrize("grow", [3.0, 30.0, 1e6])
def test_where_a_prediction_asks_too_much_less_is_widened(grow: float) -> None:
    """Errors that hide one another: they sum to more than what all of them do together."""
    model = quantize(plain(), recipe=NEAREST)
    report = sensitivity(model, X, TARGETS, by="layer")
    rows = tuple(replace(row, alone_error=row.alone_error * grow) for row in report.rows)
    goal = 1 / math.sqrt(1 + 0.7 * report.error)
    batch: Any = {"model": model, "inputs": X, "targets": TARGETS}
    found = recommend(replace(report, rows=rows), goal, **batch)
    assert found.measured is not None and found.measured >= goal
    assert found.cost_share <= recommend(report, goal, **batch).cost_share
    assert found.cost_share == min(len(t.widened) / 4 for t in found.trials if t.measured >= goal)


def test_a_layer_whose_gradient_is_lost_is_widened() -> None:
    report = additive([0.001, math.inf, math.nan, 0.002])
    report = replace(report, cosine=math.nan, error=math.nan)
    assert list(recommend(report, 0.99).overrides) == ["layer1", "layer2"]


def test_a_layer_whose_error_is_infinite_ends_no_search() -> None:
    """Such a layer never may stay, so that there is no bound from above."""
    model = quantize(plain(), recipe=NEAREST)
    report = sensitivity(model, X, TARGETS, by="layer")
    lost = (replace(report.rows[0], alone_error=math.inf), *report.rows[1:])
    goal = report.cosine + 1e-6
    found = recommend(replace(report, rows=lost), goal, model=model, inputs=X, targets=TARGETS)
    assert list(found.overrides) == ["0"] and found.measured is not None
    assert found.measured >= goal


def test_a_goal_that_is_reached_needs_nothing() -> None:
    report = additive([0.001, 0.002])
    found = recommend(report, 0.99)
    assert (found.overrides, found.cost_share, found.measured) == ({}, 0.0, report.cosine)
    assert "nothing to widen" in str(found)


def test_an_attention_is_widened_whole() -> None:
    rows = tuple(
        SensitivityRow(layer, "all", module, 0.0, 0.0, 0.9, error, 0.0)
        for layer, module, error in (
            ("block.q_proj", "block", 0.02), ("block.scores", "block", 0.02), ("head", "head", 0.03)
        )
    )  # fmt: skip
    report = replace(additive([0.07]), rows=rows)
    assert list(recommend(report, 1 / math.sqrt(1.03)).overrides) == ["block"]


def test_names_with_wildcards_are_taken_literally() -> None:
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("a[0]", nn.Linear(36, 8))
    net.add_module("a0", nn.Linear(8, 4))
    model = quantize(net, recipe=NEAREST)
    report = sensitivity(model, X.flatten(1), TARGETS, by="layer")
    rows = (replace(report.rows[0], alone_error=9.0), replace(report.rows[1], alone_error=0.0))
    found = recommend(replace(report, rows=rows), 0.9999)
    left = quantize(net, recipe=NEAREST, overrides=found.overrides)
    assert [type(layer).__name__ for layer in left] == ["Linear", "QLinear"]


def test_it_prints_in_80_columns() -> None:
    report = additive([0.001] * 30)
    text = str(recommend(report, 0.99))
    assert max(map(len, text.splitlines())) <= 80
    assert "30 of" not in text and "not measured" in text and "of 30 layers" in text


MODEL: Any = quantize(plain(), recipe=NEAREST)


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"cosine": 1}, "cosine: got 1"),
        ({"cosine": 0.0}, "cosine: got 0.0"),
        ({"cosine": 0.9999999}, r"cosine: got 0\.9999999, which only full precision in every"),
        ({"cost": {"layer0": 1.0}}, "cost: got none of layer1, which the report has"),
        ({"cost": {"layer0": 1, "layer1": 1, "fc": 1}}, "cost: got fc; the report has layer0"),
        ({"cost": {"layer0": 0, "layer1": 0}}, "cost: every layer's is 0"),
        ({"cost": {"layer0": -1, "layer1": 1}}, "cost of 'layer0': got -1"),
        ({"inputs": X}, "no model="),
        ({"more": [(X, None)]}, "no model="),
        ({"model": MODEL, "inputs": X, "targets": TARGETS}, "not those of the report"),
    ],
)
def test_what_cannot_be_honoured_is_refused(kwargs: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        recommend(additive([0.1, 0.2]), **kwargs)


def test_a_model_that_no_set_mends_is_an_error() -> None:
    off = Recipe(name="off")
    model = quantize(plain(), recipe=NEAREST, overrides={"0": off, "2": off, "5": off})
    report = sensitivity(model, X, TARGETS)
    with pytest.raises(ValueError, match="only full precision in every layer"):
        recommend(report, 0.99999, model=model, inputs=X, targets=TARGETS)


def test_what_has_no_errors_to_weigh_is_refused() -> None:
    report = additive([0.1, 0.2])
    nan = tuple(replace(row, alone_cosine=math.nan, alone_error=math.nan) for row in report.rows)
    with pytest.raises(ValueError, match="the gradient in full precision is 0 or not finite"):
        recommend(replace(report, rows=nan, cosine=math.nan))
    with pytest.raises(TypeError, match="report: got list"):
        recommend([])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cost: got list"):
        recommend(report, 0.99, [1.0, 2.0])  # type: ignore[arg-type]
    assert not recommend(report, 1e-300).overrides


# Products and roles, wider in all layers or in single ones ----------------------------------------

BATCH: Any = {"inputs": X, "targets": TARGETS}


@cache
def blame_by_role() -> SensitivityReport:
    return sensitivity(MODEL, X, TARGETS, by="role")


GRADIENT, ALL_OF_IT = "grad_output (grad_input)", ("input", "weight", "grad_output (grad_input)")


def measured(model: nn.Module) -> float:
    return sensitivity(model, X, TARGETS, by="layer").cosine


def goal_of(*roles: str) -> float:
    """What the model reaches with these operands in 8 bits, by recipes written out by hand."""
    forward = {role: replace(getattr(NEAREST.forward, role), format=WIDE[role]) for role in roles
               if role != GRADIENT}  # fmt: skip
    found = replace(NEAREST, forward=replace(NEAREST.forward, **forward))
    if GRADIENT in roles:
        own = replace(NEAREST.grad_input.grad_output, format=IntFormat(8))
        found = replace(found, grad_input=replace(NEAREST.grad_input, grad_output=own))
    return measured(quantize(plain(), recipe=found))


WIDE = {"input": IntFormat(8, signed=False, symmetric=False), "weight": IntFormat(8)}


@pytest.mark.parametrize(
    ("by", "each", "to"),
    [("role", False, 8), ("product", False, 8), ("role", False, None), ("role", False, "fp8"),
     ("layer", False, 8), ("role", True, 8), ("product", True, 8), ("layer", False, "fp8")],
)  # fmt: skip
def test_what_is_recommended_reaches_what_was_measured_handed_on_as_it_is(
    by: str, each: bool, to: Any
) -> None:
    found = recommend(blame_by_role(), 0.93, by=by, to=to, each=each, model=MODEL, **BATCH)
    assert found.before == pytest.approx(blame_by_role().cosine, abs=1e-9) and found.before < 0.93
    assert found.measured is not None and found.measured >= 0.93 and found.recipe is not None
    again = quantize(plain(), recipe=found.recipe, overrides=found.overrides)
    assert measured(again) == pytest.approx(found.measured, abs=1e-9)
    switched = set_recipe(copy.deepcopy(MODEL), found.recipe, found.overrides)
    assert measured(switched) == pytest.approx(found.measured, abs=1e-9)
    text = str(found)
    assert ("in all layers" in text) == (by != "layer" and not each)
    assert f"{found.before:.5f} without" in text and f"{found.measured:.5f} measured" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_fewest_bits_that_reach_the_goal_are_added() -> None:
    """The oracle: every set, each with a recipe written out by hand; bits: 4, 4 and 5 to 8."""
    added = {"input": 4, "weight": 4, GRADIENT: 3}
    reached = {
        roles: goal_of(*roles)
        for n in range(1, 4)
        for roles in itertools.combinations(ALL_OF_IT, n)
    }
    for goal in sorted(reached.values())[::3]:
        found = recommend(blame_by_role(), goal - 1e-9, by="role", to=8, model=MODEL, **BATCH)
        fewest = min(sum(added[r] for r in s) for s, cosine in reached.items() if cosine >= goal)
        assert sum(added[role] for role in found.widened) == fewest
        assert found.measured == pytest.approx(reached[found.widened], abs=1e-9)
        before = (4 + 4 + 5 + 16) * 4  # of four layers
        assert found.cost_share == pytest.approx(4 * fewest / before) and found.unit == "bits"


def test_only_the_bits_change_and_only_of_what_has_fewer() -> None:
    """Roles keep their rounding and range; what an override made wider, or left, stays."""
    own = replace(recipes.int8(bits=12), name="mine")
    given: dict[str, Any] = {"5": own, "2": None}
    model = quantize(plain(), recipe=NEAREST, overrides=given)
    blame = sensitivity(model, X, TARGETS, by="role")
    found = recommend(blame, blame.cosine + 1e-4, by="role", to=8, model=model, **BATCH)
    assert found.recipe is not None and found.overrides == given
    for product, operand in SLOTS:
        before, after = (recipe.slot(product, operand) for recipe in (NEAREST, found.recipe))
        wide = OPERAND_ROLES[product, operand] in found.widened
        assert wide or before == after or found.recipe.reuses(product, operand)
        if wide:
            assert isinstance(after, Quantizer) and isinstance(after.format, IntFormat)
            assert after == replace(before, format=replace(before.format, bits=8))  # type: ignore[type-var]


def test_overrides_of_single_layers_come_before_those_that_the_model_has() -> None:
    model = quantize(plain(), recipe=NEAREST, overrides={"0": 3, "[25]": 3})
    blame = sensitivity(model, X, TARGETS, by="layer")
    found = recommend(blame, 0.98, to=8, model=model, **BATCH)
    assert len(found.widened) >= 2
    assert list(found.overrides)[: len(found.widened)] == list(found.widened)
    assert measured(set_recipe(model, found.recipe, found.overrides)) >= 0.98


def test_one_sentence_says_what_to_change() -> None:
    found = recommend(
        blame_by_role(), goal_of(*ALL_OF_IT) - 1e-9, by="role", to=8, model=MODEL, **BATCH
    )
    text = " ".join(str(found).split())
    assert text.startswith("give input, weight and grad_output (grad_input) 8 bits in all layers (")
    assert f"{1 / found.before**2 - 1:.3g} -> " in text


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"by": "operand"}, "by: got 'operand'"),
        ({"by": "role"}, "by and to need model="),
        ({"to": 8}, "by and to need model="),
        ({"by": "layer", "each": True}, "each: got True by='layer'"),
        ({"to": 1}, "to: got 1"),
        ({"by": "role", "to": 4, "model": MODEL, **BATCH}, "to: got 4 bits, .* no part"),
        ({"by": "role", "to": 6, "model": MODEL, **BATCH}, "cosine: got 0.99, but with 6 bits"),
        ({"by": "layer", "to": 6, "model": MODEL, **BATCH}, "cosine: got 0.99, but with 6 bits"),
        ({"by": "role", "to": "int9", "model": MODEL, **BATCH}, "int9"),
    ],
)
def test_what_to_widen_is_honoured_or_refused(kwargs: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        recommend(blame_by_role(), **kwargs)


def test_a_coarser_report_says_nothing_of_finer_parts() -> None:
    blame = sensitivity(MODEL, X, TARGETS, by="layer")
    with pytest.raises(ValueError, match="report: is by 'layer', which says nothing of a role"):
        recommend(blame, by="role", to=8, model=MODEL, **BATCH)


def test_bits_of_a_float_are_refused_and_a_recipe_is_taken() -> None:
    model = quantize(plain(), recipe="mxfp4")
    blame = sensitivity(model, X, TARGETS, by="role")
    with pytest.raises(ValueError, match=r"to: got 8, but .* has no bits to set; give a recipe"):
        recommend(blame, by="role", to=8, model=model, **BATCH)
    found = recommend(blame, 0.98, by="role", to="mxfp8", model=model, **BATCH)
    assert found.recipe is not None
    assert measured(set_recipe(model, found.recipe, found.overrides)) >= 0.98
