"""bisect: 1-minimal sets within the bound; planted faults named; every trial from one state."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from qtrain import Bisection, NormHistory, bisect, quantize, recipes, replay
from qtrain.recipe import GradInput, GradWeight, Recipe
from qtrain.smallest import TrialsSpentError, most_trials, smallest
from qtrain.switches import rounded_parts
from qtrain.weight_decay import NormSchedule
from quantizers import IntFormat, Quantizer

NOISE = torch.Generator().manual_seed(3)
BATCHES = [(torch.randn(8, 12, generator=NOISE), torch.arange(8) % 4) for _ in range(4)]


class Explodes:
    """An int8 quantizer whose scale is 10^15 times too large."""

    def __call__(self, x: Tensor, *, state: Any, key: Any = None, training: bool = True) -> Any:
        q = Quantizer(format=IntFormat(8))(x)
        return q._replace(scale=q.scale * 1e15)  # type: ignore[operator]


def net(**faults: Recipe) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.Dropout(0.2), nn.ReLU(),
        nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip
    return quantize(model, overrides={name.strip("_"): recipe for name, recipe in faults.items()})


BAD_INPUT = replace(recipes.int8(), grad_input=GradInput(grad_output=Explodes()))
BAD_WEIGHT = replace(recipes.int8(), grad_weight=GradWeight(grad_output=Explodes()))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> Tensor:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    optimizer.step()
    return loss


def grown(losses: Any) -> bool:
    return not losses[-1] < 100


def found(model: nn.Module, lr: float = 0.1, **kwargs: Any) -> Bisection:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    run = replay(model, optimizer, step, BATCHES, diverged=grown)
    return bisect(model, run, say=lambda text: None, **kwargs)


@given(st.integers(1, 14), st.data())
def test_a_monotone_property_gives_a_1_minimal_set_within_the_bound(n: int, draw: Any) -> None:
    """It holds for every superset of one of some hidden sets."""
    sets = st.sets(st.integers(0, n - 1), min_size=1)
    hidden = draw.draw(st.lists(sets, min_size=1, max_size=3))
    asked: list[tuple[int, ...]] = []

    def holds(some: tuple[int, ...]) -> bool:
        asked.append(some)
        return any(own <= set(some) for own in hidden)

    got, minimal = smallest(range(n), holds)
    assert minimal and set(got) in hidden and list(got) == sorted(got)
    assert all(not any(own <= set(got) - {item} for own in hidden) for item in got)
    assert len(asked) == len(set(asked)) <= most_trials(n)


@given(st.integers(1, 10), st.integers(0, 2**32))
def test_any_property_gives_a_1_minimal_set_within_the_bound(n: int, seed: int) -> None:
    """It holds or not for each set at random, for all and not for none."""
    count = 0

    def truth(some: tuple[int, ...]) -> bool:
        return len(some) == n or (bool(some) and hash((seed, some)) % 3 == 0)

    def holds(some: tuple[int, ...]) -> bool:
        nonlocal count
        count += 1
        return truth(some)

    got, minimal = smallest(range(n), holds)
    assert minimal and truth(got) and count <= most_trials(n)
    if len(got) > 1:
        assert not any(truth(tuple(x for x in got if x != item)) for item in got)


@pytest.mark.parametrize("n", [1, 2, 16, 64, 100])
def test_one_culprit_takes_two_questions_a_halving(n: int) -> None:
    for culprit in {0, n // 3, n - 1}:
        asked = []
        got, _ = smallest(range(n), lambda some: asked.append(some) or culprit in some)  # noqa: B023
        assert got == (culprit,)
        assert len(asked) <= 2 * math.ceil(math.log2(n))


def test_a_search_that_is_cut_short_keeps_what_it_has() -> None:
    left = 3

    def holds(some: tuple[int, ...]) -> bool:
        nonlocal left
        if not left:
            raise TrialsSpentError
        left -= 1
        return {2, 13} <= set(some)

    got, minimal = smallest(range(16), holds)
    assert not minimal and {2, 13} <= set(got)


@pytest.mark.parametrize(
    ("faults", "units"),
    [
        ({"_5": BAD_INPUT}, (("5", "grad_input"),)),
        ({"_2": BAD_WEIGHT}, (("2", "grad_weight"),)),
        ({"_2": BAD_WEIGHT, "_7": BAD_INPUT}, (("2", "grad_weight"), ("7", "grad_input"))),
    ],
    ids=["grad_input", "grad_weight", "two"],
)
def test_planted_faults_are_named(faults: Any, units: Any) -> None:
    result = found(net(**faults))
    assert (result.outcome, result.units, result.minimal) == ("found", units, True)
    assert {(layer, role.partition("(")[2].rstrip(")")) for layer, role in result.parts} == set(
        units
    )
    assert result.candidates == 12 and len(result.trials) <= most_trials(12) + 2
    assert [trial.off for trial in result.trials][:2] == [(), tuple(
        (layer, part) for layer in "0257" for part in ("forward", "grad_input", "grad_weight")
    )]  # fmt: skip
    text = str(result)
    assert all(f"  {layer} {part}" in text for layer, part in units)
    assert max(map(len, text.splitlines())) <= 80


def test_layers_roles_and_chosen_parts() -> None:
    model = net(_5=BAD_INPUT)
    assert found(model, by="layer").units == (("5", "all"),)
    role = ("5", "grad_output (grad_input)")
    assert found(model, by="role").parts == (role,)
    chosen = found(model, parts=[role, ("0", "input")], by="role")
    assert (chosen.parts, chosen.candidates) == ((role,), 2)
    other = found(model, parts=[("0", "input"), ("5", "weight")])
    assert (other.outcome, other.units, len(other.trials)) == ("none helps", (), 2)
    assert "not their rounding" in " ".join(str(other).split())


def test_what_does_not_diverge_needs_nothing_and_what_full_precision_does_too_has_no_set() -> None:
    healthy = found(net())
    assert (healthy.outcome, len(healthy.trials)) == ("none needed", 1)
    assert "does not diverge as it is" in str(healthy)
    wild = found(net(), lr=1e6)
    assert (wild.outcome, wild.units, len(wild.trials)) == ("none helps", (), 2)


def test_trials_that_run_out_are_said() -> None:
    result = found(net(_2=BAD_WEIGHT, _7=BAD_INPUT), trials=4)
    assert (result.outcome, result.minimal, len(result.trials)) == ("found", False, 4)
    assert {("2", "grad_weight"), ("7", "grad_input")} <= set(result.units)
    assert "the trials ran out" in str(result)
    with pytest.raises(ValueError, match="trials: got 1"):
        found(net(), trials=1)


def test_every_trial_starts_from_the_same_state_and_touches_nothing() -> None:
    """The model and its optimizer are in the middle of a training, with dropout and momentum."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for batch in BATCHES[:2]:
        step(model, optimizer, batch)
    before = [copy.deepcopy(x) for x in (model.state_dict(), optimizer.state_dict())]
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    generator = torch.get_rng_state()
    seen: list[list[float]] = []

    def diverged(losses: Any) -> bool:
        if len(losses) == 1:
            seen.append(losses)
        return False if len(losses) < 2 else len(seen) != 2

    bisect(model, replay(model, optimizer, step, iter(BATCHES[2:]), diverged=diverged), trials=9)
    torch.set_rng_state(generator)
    for now, was in zip((model.state_dict(), optimizer.state_dict()), before, strict=True):
        assert str(now) == str(was)
    assert all(
        torch.equal(p.grad, g)  # type: ignore[arg-type]
        for p, g in zip(model.parameters(), grads, strict=True)
    )
    assert all(torch.equal(a, b) for a, b in zip(  # str shows four digits
        model.state_dict().values(), before[0].values(), strict=True))  # fmt: skip
    trained = [step(model, optimizer, batch).item() for batch in BATCHES[2:]]
    assert seen[0] == trained
    assert len(seen) > 2 and all(len(losses) == 2 for losses in seen)


def test_the_optimizer_is_that_of_the_moment_replay_was_called() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step(model, optimizer, BATCHES[0])
    runs: list[list[float]] = []
    twin = copy.deepcopy(model)
    run = replay(model, optimizer, step, BATCHES, diverged=lambda x: runs.append(x) or False)
    torch.manual_seed(5)
    run(copy.deepcopy(twin))
    optimizer.param_groups[0]["lr"] = 7.0
    step(model, optimizer, BATCHES[0])
    torch.manual_seed(5)
    run(copy.deepcopy(twin))
    assert runs[0] == runs[-1] and len(runs) == 8


def test_each_trial_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    model = net(_5=BAD_INPUT)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lines: list[str] = []
    run = replay(model, optimizer, step, BATCHES, diverged=grown)
    result = bisect(model, run, say=lines.append)
    assert len(lines) == len(result.trials) and "12 of 12 in full precision" in lines[1]
    bisect(model, run)
    assert capsys.readouterr().err.splitlines() == lines


def hooked() -> Any:
    model = net()
    history = NormHistory()
    history.record(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    NormSchedule(optimizer, model, history.at(0))
    return model, optimizer


def test_what_cannot_be_honoured_is_refused() -> None:
    model, optimizer = hooked()
    with pytest.raises(ValueError, match="has step hooks"):
        replay(model, optimizer, step, BATCHES)
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="batches: got none"):
        replay(model, plain, step, [])
    with pytest.raises(ValueError, match="no copy of the model"):
        replay(model, plain, step, BATCHES)(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="nothing to switch"):
        bisect(nn.Linear(2, 2), lambda model: True)
    with pytest.raises(ValueError, match="nothing to switch"):
        bisect(model, lambda model: True, [])
    with pytest.raises(ValueError, match=r"parts: got '0', need \(layer, role\)"):
        bisect(model, lambda model: True, ["0"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="the model rounds nothing in '9'"):
        bisect(model, lambda model: False, [("9", "input")])
    with pytest.raises(ValueError, match="rounds no 'sideways' there, only input, weight"):
        bisect(model, lambda model: False, [("0", "sideways")])
    with pytest.raises(TypeError, match=r"diverges: its result: got 1\.0"):
        bisect(model, lambda model: 1.0)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="by: got 'layers'"):
        bisect(model, lambda model: True, by="layers")


def test_a_switched_part_is_off_in_the_copy_and_on_in_the_model() -> None:
    model = net()
    parts = rounded_parts(model)
    seen = []

    def diverges(twin: nn.Module) -> bool:
        assert twin is not model
        seen.append(len(rounded_parts(twin)))
        return len(seen) == 1

    bisect(model, diverges, trials=3, say=lambda text: None)
    assert seen[:2] == [len(parts), 0] and rounded_parts(model) == parts
