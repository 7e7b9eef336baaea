"""The microscope's experiments: faults are what they say, intervals exact, tables the results'."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiments.microscope import blind_faults, blind_tables, healthy
from experiments.microscope.exact import interval, mcnemar
from experiments.microscope.faults import KINDS, OF_SCALE, Fault, Faulty, axes, planted
from experiments.microscope.judged import JUDGES, judged, sized
from experiments.microscope.sqnr import falls, operands, ranked
from qtrain import Monitor, diagnose, quantize, recipes
from qtrain.inspection.row import SLOT_OF
from quantizers import Quantizer, blocks, e4m3, int8, root_key, stochastic


@pytest.mark.parametrize(("count", "n"), [(0, 20), (1, 10), (7, 20), (50, 50), (90, 96)])
def test_the_interval_is_clopper_and_pearsons(count: int, n: int) -> None:
    """Against tails in whole numbers: 2.5 % at each end, just."""

    def at_least(k: int, p: Fraction) -> Fraction:
        return sum(
            (math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1)), Fraction(0)
        )

    low, high = interval(count, n)
    tail, little = Fraction(1, 40), Fraction(1, 10**9)
    if count == 0:
        assert low == 0
    else:
        assert (
            at_least(count, Fraction(low) - little) < tail < at_least(count, Fraction(low) + little)
        )
    if count == n:
        assert high == 1
    else:
        above = [1 - at_least(count + 1, Fraction(high) + sign * little) for sign in (-1, 1)]
        assert above[0] > tail > above[1]


def test_known_intervals_and_mcnemars_test() -> None:
    assert interval(0, 20) == pytest.approx((0, 1 - 0.025 ** (1 / 20)))
    assert interval(1, 10) == pytest.approx((0.002529, 0.445016), abs=1e-6)
    assert mcnemar(9, 1) == pytest.approx(2 * 11 / 1024)
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1
    with pytest.raises(ValueError, match="count"):
        interval(3, 2)


X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
KEY = root_key(0, 0)
SYMMETRIC = Quantizer(format=int8)


def made(kind: str, size: float, x: Tensor = X, base: Quantizer = SYMMETRIC, **more: Any) -> Any:
    """A quantizer with a fault, called once, and the healthy one."""
    fault = Fault("", "input", kind, size, **{"up": True, "place": 0.5, **more})
    return Faulty(base, fault)(x, key=KEY), base(x, key=KEY)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("scale 0", "shared noise")])
@pytest.mark.parametrize(
    "base", [SYMMETRIC, recipes.int8().forward.input, Quantizer(format=e4m3, granularity=blocks(3))]
)
def test_a_fault_of_no_size_is_the_healthy_quantizer(kind: str, base: Quantizer) -> None:
    """But for what is a share: at least one element, row, or pair of channels is at fault."""
    fault = Faulty(base, Fault("", "input", kind, 0.0, True, 0.5))
    state = fault.init_state(X.shape)
    q = fault(X, state=state, key=KEY)
    own = base(X, state=base.range.init_state((1, 1)) if state else None, key=KEY)  # type: ignore[union-attr]
    assert torch.equal(q.scale, own.scale)
    part = {"zero point off by one": 1, "rounding to odd": 1, "dead tile": 1,
            "transposed scale": 2 * 8, "wrong axis": 6}.get(kind, 0)  # fmt: skip
    assert int((q.elements != own.elements).sum()) <= part


def test_scales_are_at_fault_as_they_say() -> None:
    for kind, factor in (("clipped range", 1 / 4), ("coarse scale", 4), ("stale range", 4)):
        q, own = made(kind, 3.0)
        assert q.scale.item() == pytest.approx(own.scale.item() * factor)
        assert torch.equal(q.elements, (X / q.scale).round().clamp(-127, 127).to(torch.int8))
    q, _ = made("scale 0", 1.0)
    assert not q.scale.any() and not q.elements.any()
    stale, drift = (
        Faulty(SYMMETRIC, Fault("", "input", kind, 1.0, False, 0.0))
        for kind in ("stale range", "drifting range")
    )
    first = SYMMETRIC(X).scale
    for call in range(3):
        assert torch.equal(stale(X * (1 + call)).scale, first / 2)
        assert drift(X).scale.item() == pytest.approx(first.item() / 2**call)
        drift(X, training=False)  # an evaluation does not count


def test_elements_are_at_fault_as_they_say() -> None:
    q, own = made("biased rounding", 0.4)
    assert torch.equal(q.elements, (X / own.scale + 0.4).round().clamp(-127, 127).to(torch.int8))
    q, own = made("zero point off by one", 0.5)
    more = (q.elements.int() - own.elements.int()).flatten()
    assert (more[:24] == (own.elements.flatten()[:24] < 127)).all() and not more[24:].any()
    q, own = made("rounding to odd", 1.0)
    between = (X / own.scale) != (X / own.scale).round()
    assert (q.elements[between] % 2 != 0).all() and ((q.dequantize() - X).abs() <= own.scale).all()
    q, _ = made("rounding to odd", 1.0, torch.tensor([[127.0, 2.0, 3.5, -2.5]]))
    assert q.elements.tolist() == [[127, 2, 3, -3]]  # at scale 1; a code stays what it is
    q, own = made("dead tile", 0.25)
    assert not q.elements.flatten()[:12].any()
    assert torch.equal(q.elements.flatten()[12:], own.elements.flatten()[12:])
    noisy = Quantizer(format=int8, rounding=stochastic())
    same = torch.full((64, 6), 0.505)
    same[0, 0] = 1.27
    q, _ = made("biased rounding", 0.0, same, noisy)  # noise of its own for each element
    assert all(len(column.unique()) == 2 for column in q.elements[1:].T)
    for base in (noisy, SYMMETRIC):
        q, _ = made("shared noise", 1.0, same, base)
        assert (q.elements[1:] == q.elements[1]).all() and len(q.elements[1].unique()) == 2


def test_channels_are_at_fault_as_they_say() -> None:
    q, own = made("bad channel", 0.5, up=False)
    wrong = (q.elements != own.elements).any(0)
    assert wrong.tolist() == [False, False, False, True, False, False]
    assert torch.equal(q.elements[:, 3], (X / 1.5 / own.scale).round().to(torch.int8)[:, 3])
    q, own = made("bad channel", 0.5, up=False, place=1.0)
    assert (q.elements != own.elements).any(0).tolist() == [*[False] * 5, True]
    peaks = X.abs().amax(0)
    q, own = made("transposed scale", 0.5)
    other = X * torch.cat([peaks[:3].flip(0) / peaks[:3], torch.ones(3)])
    assert torch.equal(q.elements, (other / own.scale).round().clamp(-127, 127).to(torch.int8))
    q, own = made("wrong axis", 0.25)
    other = X.clone()
    other[:2] *= peaks / X[:2].abs().amax(1, keepdim=True)
    assert torch.equal(q.elements, (other / own.scale).round().clamp(-127, 127).to(torch.int8))
    assert axes(torch.zeros(2, 3, 4, 4)) == (0, 1) and axes(torch.zeros(1, 5, 7)) == (1, 2)


@pytest.mark.parametrize("recipe", blind_faults.RECIPES.values())
def test_a_fault_is_planted_in_one_role_alone(recipe: Any) -> None:
    """The SQNR of the others, measured in the forward's first call, is what it was."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 32))
    x, y = torch.randn(64, 64), torch.randint(0, 32, (64,))

    def sqnr(overrides: Any) -> Any:
        model = quantize(net, recipe=recipe(), overrides=overrides)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Monitor(model, 1, layers=None) as monitor:
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return operands(monitor.rows)

    usual = sqnr(None)
    for role in ("weight", "grad_output (grad_weight)"):
        fault = Fault("1", role, "dead tile", 0.5, True, 0.0)
        changed = {
            tensor
            for tensor, fall in falls(sqnr({"1": planted(recipe(), fault)}), usual).items()
            if fall < -10
        }
        assert changed == {("1", role)}
        assert not ranked(usual)[0][2] < 10


def test_draws_are_of_a_seed_and_of_scales_where_there_are_some() -> None:
    recipe = recipes.int8()
    roles = "input", "weight", "grad_output (grad_input)", "grad_output (grad_weight)"
    places = [(layer, role) for layer in "ab" for role in roles]
    draws = [blind_faults.drawn(i, recipe, places) for i in range(200)]
    assert draws == [blind_faults.drawn(i, recipe, places) for i in range(200)]
    faults = [fault for draw in draws for fault in draw]
    assert {fault.kind for fault in faults} == set(KINDS)
    assert {len({(f.layer, f.role) for f in draw}) - len(draw) for draw in draws} == {0}
    for fault in faults:
        assert KINDS[fault.kind] <= fault.size <= 1000 * KINDS[fault.kind]
        bare = recipe.slot(*SLOT_OF[fault.role]).range is None  # type: ignore[attr-defined]
        assert not (bare and fault.kind in OF_SCALE)
    assert any(recipe.slot(*SLOT_OF[f.role]).range is None for f in faults)  # type: ignore[attr-defined]


def test_results_of_other_rules_are_not_gone_on_with(tmp_path: Path) -> None:
    found: dict[str, Any] = {}
    blind_faults.same_rules(tmp_path, found)
    blind_faults.same_rules(tmp_path, found)
    assert found == {"rules": blind_faults.rules_digest()}
    with pytest.raises(SystemExit, match="other rules"):
        blind_faults.same_rules(tmp_path, {"rules": "others"})


def test_a_draw_is_judged() -> None:
    fault = {"layer": "a", "role": "input", "kind": "bad channel", "size": 0.3}
    looks = [(20.0, None), (18.0, ["b", "input", -3.0])]
    cell = {"healthy": [{"lowest": ["b", "input", low], "fall": fall} for low, fall in looks]}
    draw = {
        "faults": [{**fault, "sqnr": 19.0, "fall": -4.0}], "lost": 0.1,
        "findings": [["a", "weight", "gain", 1.0], ["a", "input", "gain", 0.5]],
        "lowest": [["b", "input", 18.5]], "falls": [["a", "input", -4.0]],
    }  # fmt: skip
    own = judged(draw, cell)
    assert own["found"] == {"diagnose": [True], "lowest SQNR": [False], "largest fall": [True]}
    assert own["first"] == {"diagnose": False, "lowest SQNR": False, "largest fall": True}
    assert own["layer"] == {"diagnose": True, "lowest SQNR": False, "largest fall": True}
    assert sized([own], 0.9, 1.1) == [own] and sized([own], 1.1, 3) == []


def test_each_recipe_meets_each_optimizer_rate_and_network() -> None:
    assert len(healthy.RUNS) == 96
    met = {
        (healthy.recipe_of(i), *part)
        for i, run in enumerate(healthy.RUNS)
        for part in enumerate(run)
    }
    for recipe in ("int8", "fp8", "mxfp8"):
        assert len([own for own in met if own[0] == recipe]) == 8 + 3 + 4
    assert healthy.healthy(2.0, 1.0, 0.95)
    for first, last, fp32 in ((2.0, 1.0, 0.8), (1.0, 1.1, 1.1), (2.0, math.nan, 1.0)):
        assert not healthy.healthy(first, last, fp32)


CELLS = sorted((blind_faults.OUT / "blind").glob("*.json"))


def test_the_committed_tables_are_those_of_the_committed_draws() -> None:
    committed = (blind_tables.RESULTS / "blind_faults.md").read_text()
    assert blind_tables.report() == committed.rstrip("\n")
    found = [json.loads(path.read_text()) for path in CELLS]
    assert sorted(int(i) for own in found for i in own["draws"]) == list(range(300))
    draws = blind_tables.all_draws(blind_tables.read())
    text = (blind_tables.RESULTS.parent / "README.md").read_text(encoding="utf-8")
    for low, high in ((0.01, 2), (0.001, 0.01), (0, 0.001), (0, 2)):
        own = [draw for draw in draws if low <= draw["lost"] < high]
        cells = [blind_tables.rates(own, judge)[1].partition(", ")[2] for judge in JUDGES]
        assert f" {len(own)}" in text and f"| {' | '.join(cells)} |" in text
    runs = json.loads(healthy.OUT.read_text())
    assert {own["rules"] for own in found} == {runs["rules"]}
    for path in (healthy.OUT, healthy.AGAIN):
        runs = json.loads(path.read_text())["runs"]
        assert {int(i) for i in runs} <= set(range(96))
        assert healthy.tables(runs).splitlines()[2].split("|")[2].strip() in " ".join(text.split())


@pytest.mark.parametrize("size", [6.0, 9.0])
def test_a_scale_too_coarse_is_named_where_three_bits_are_lost(size: float) -> None:
    fault = Fault("0", "input", "coarse scale", size, True, 0.5)
    model = quantize(nn.Sequential(nn.Linear(16, 8)), recipe=planted(recipes.int8(), fault))
    monitor = Monitor(model, 1)
    for seed in range(3):
        model(torch.randn(64, 16, generator=torch.Generator().manual_seed(seed))).sum().backward()
        monitor.end_step()
    named = [(f.layer, f.role, f.symptom) for f in diagnose(monitor).findings]
    assert named == ([("0", "input", "scale too coarse")] if size > 7 else [])
