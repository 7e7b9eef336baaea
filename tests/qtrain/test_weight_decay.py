"""Weight decay as a correction of the learning rate: eq. 4 by hand, and what it is for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qtrain import (
    CorrectedSteps,
    NormHistory,
    NormSchedule,
    bound_weights,
    channel_norms,
    effective_rates,
)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 3, bias=False, groups=2),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(4 * 36, 3),
    ).double()


def gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 2, 6, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (16,), generator=generator)
    model.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()


def by_hand(w: Tensor, transposed_groups: int = 0) -> Tensor:
    """The channels' norms, broadcastable to w."""
    if not transposed_groups:
        return w.flatten(1).norm(dim=1).view(-1, *[1] * (w.dim() - 1))
    groups, inputs = transposed_groups, w.shape[0] // transposed_groups
    parts = [w[g * inputs : (g + 1) * inputs].square().sum((0, 2, 3)).sqrt() for g in range(groups)]
    return torch.cat([p.view(1, -1, 1, 1).expand(inputs, -1, 1, 1) for p in parts])


def test_channel_norms_are_those_of_the_output_channels() -> None:
    model = network()
    norms = channel_norms(model)
    assert list(norms) == ["0.weight", "3.weight", "6.weight"]
    assert [norm.numel() for norm in norms.values()] == [6, 4, 3]
    torch.testing.assert_close(norms["0.weight"], by_hand(model[0].weight).flatten().float())
    whole = by_hand(model[3].weight, 2)  # rows of a group share them
    torch.testing.assert_close(norms["3.weight"].view(2, 2), whole[::3, :, 0, 0].float())
    assert list(channel_norms(model, only=["3", "6"], skip=["6"])) == ["3.weight"]


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_steps_are_multiplied_by_the_ratio_of_squared_norms(kind: str) -> None:
    """Against equation 4 written out, momentum accumulated by the optimizer itself."""
    ours, plain = network(), network()
    norms = {"0.weight": torch.rand(6) + 0.5, "3.weight": torch.rand(4) + 0.5}
    make: Any = {
        "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
        "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01),
    }[kind]
    optimizer, reference = make(ours), make(plain)
    correction = CorrectedSteps(optimizer, ours, norms)
    for step in range(4):
        gradients(ours, step)
        for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
            assert b.grad is None or step or torch.equal(a, b)
            b.grad = None if a.grad is None else a.grad.clone()
        old = [p.detach().clone() for p in plain.parameters()]
        optimizer.step()
        reference.step()
        with torch.no_grad():
            for (name, p), before in zip(plain.named_parameters(), old, strict=True):
                if name in norms:
                    size = by_hand(before, 2 if name == "3.weight" else 0)
                    wanted = norms[name].double()
                    if name == "3.weight":
                        wanted = torch.cat([w.view(1, 2, 1, 1).expand(3, 2, 1, 1)
                                            for w in wanted.view(2, 2)])  # fmt: skip
                    else:
                        wanted = wanted.view(-1, 1, 1, 1)
                    p.copy_(before + (p - before) * (size / wanted) ** 2)
        for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b)
    correction.remove()
    gradients(ours, 9)
    free = copy.deepcopy(ours)
    own = make(free)
    own.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    gradients(free, 9)
    optimizer.step()
    own.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), free.parameters(), strict=True))


def directions(model: nn.Module) -> Tensor:
    weight = model.get_submodule("0").weight
    assert isinstance(weight, Tensor)
    return nn.functional.normalize(weight.detach().flatten(1), dim=1)


def follow(corrected: bool, steps: int = 100) -> float:
    """Mean cosine between the channels of a run with weight decay and one without."""
    decayed, free = network(), network()
    decay = 0.05
    first = torch.optim.SGD(decayed.parameters(), lr=0.1, weight_decay=decay)
    second = torch.optim.SGD(free.parameters(), lr=0.1)
    # the layers without a norm behind them decay in both, as the classifier does in the paper
    for optimizer, both in ((first, True), (second, False)):
        layers = decayed if both else free
        group = optimizer.param_groups[0]
        scaled = [layers[0].weight, layers[3].weight]
        rest = [p for p in group["params"] if all(p is not s for s in scaled)]
        group["params"] = scaled
        optimizer.add_param_group({"params": rest, "weight_decay": decay})
    correction = None
    for step in range(steps):
        norms = channel_norms(decayed, only=["0", "3"])
        if corrected:
            if correction is None:
                correction = CorrectedSteps(second, free, norms)
            correction.set_norms(norms)
        for model, optimizer in ((decayed, first), (free, second)):
            gradients(model, step % 4)
            optimizer.step()
    return float((directions(decayed) * directions(free)).sum(1).mean())


def test_the_corrected_run_follows_the_directions_of_the_decayed_one() -> None:
    corrected, plain = follow(True), follow(False)
    assert corrected > 0.99
    assert plain < corrected - 0.005  # the decay does something that the correction makes up for


def test_a_norm_schedule_sets_every_channels_norm() -> None:
    model = network()
    norms = {"0.weight": torch.rand(6) + 0.5, "3.weight": torch.rand(4) + 0.5}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = NormSchedule(optimizer, model, norms)
    schedule.factor = 3.0
    classifier = model[6].weight.detach().clone()
    gradients(model, 0)
    optimizer.step()
    found = channel_norms(model)
    for name, norm in norms.items():
        torch.testing.assert_close(found[name], 3 * norm)
    assert not torch.equal(model[6].weight, classifier)
    model[0].weight.data[1] = 0  # stays 0
    optimizer.zero_grad()
    with pytest.raises(ValueError, match=r"factor: got -1.0, need a finite number above 0"):
        schedule.factor = -1.0
    schedule.factor = 1.0
    optimizer.step()
    assert not model[0].weight[1].any() and torch.isfinite(model[0].weight).all()


def test_effective_rates_are_the_rate_over_the_squared_norm() -> None:
    model = network()
    optimizer = torch.optim.SGD([{"params": model[0].parameters(), "lr": 0.5},
                                 {"params": model[6].parameters(), "lr": 0.1}])  # fmt: skip
    found = effective_rates(model, optimizer)
    assert list(found) == ["0.weight", "6.weight"]  # the others are not trained
    norms = channel_norms(model)
    torch.testing.assert_close(found["0.weight"], 0.5 / norms["0.weight"].square())
    torch.testing.assert_close(found["6.weight"], 0.1 / norms["6.weight"].square())
    bounded = bound_weights(network())
    rates = effective_rates(bounded, torch.optim.SGD(bounded.parameters(), lr=1.0))
    torch.testing.assert_close(rates["0.weight"], 1 / norms["0.weight"].square())  # of v


def test_a_history_is_saved_whole_and_its_last_epoch_lasts(tmp_path: Path) -> None:
    model, history = network(), NormHistory(only=["0"])
    with pytest.raises(ValueError, match=r"history: it is empty"):
        history.at(0)
    for scale in (1.0, 2.0):
        model[0].weight.data.mul_(scale)
        history.record(model)
    history.save(tmp_path / "norms.pt")
    again = NormHistory.load(tmp_path / "norms.pt")
    assert list(again.at(0)) == ["0.weight"] and len(again.epochs) == 2
    torch.testing.assert_close(again.at(5)["0.weight"], 2 * history.at(0)["0.weight"])
    again.record(model)  # goes on with the patterns it was saved with
    assert list(again.at(2)) == ["0.weight"]
    with pytest.raises(ValueError, match=r"epoch: got -1"):
        again.at(-1)


STATES: list[tuple[Any, str]] = [
    ({}, r"got \[\], need what state_dict\(\) gave, \['epochs', 'only', 'skip'\]"),
    ([], "got list, need what"),
    ({"only": "*", "skip": [], "epochs": []}, r"history: only: got '\*', need a list"),
    ({"only": None, "skip": [], "epochs": []}, "history: only: got None, need a list"),
    ({"only": ["*"], "skip": [], "epochs": {"a": 1}}, "its epochs are no list of norms"),
    ({"only": ["*"], "skip": [], "epochs": [{"a": 1.0}]}, "its epochs are no list of norms"),
    ({"only": ["*"], "skip": [], "epochs": [{"a": torch.ones(2, 2)}]}, "its epochs are no list"),
]


@pytest.mark.parametrize(("state", "message"), STATES)
def test_what_is_no_history_is_refused_whole(state: Any, message: str, tmp_path: Path) -> None:
    history = NormHistory(only=["0"])
    history.record(network())
    with pytest.raises(ValueError, match=message):
        history.load_state_dict(state)
    assert history.only == ["0"] and list(history.at(0)) == ["0.weight"]
    torch.save(state, tmp_path / "norms.pt")
    with pytest.raises(ValueError, match=rf"norms\.pt: not a history.*{message}"):
        NormHistory.load(tmp_path / "norms.pt")


@pytest.mark.parametrize("part", [0.0, 0.1, 0.9])
def test_a_damaged_history_is_named(part: float, tmp_path: Path) -> None:
    path, history = tmp_path / "norms.pt", NormHistory()
    history.record(network())
    history.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(
        ValueError, match=r"norms\.pt: not a history that save\(\) wrote, or damaged"
    ):
        NormHistory.load(path)
    with pytest.raises(FileNotFoundError):
        NormHistory.load(tmp_path / "none.pt")


def test_norms_that_do_not_fit_are_refused() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    good = {"0.weight": torch.ones(6)}
    with pytest.raises(TypeError, match=r"optimizer: got Sequential"):
        CorrectedSteps(model, model, good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"norms: got '0.weights'.*did you mean '0.weight'"):
        CorrectedSteps(optimizer, model, {"0.weights": torch.ones(6)})
    with pytest.raises(ValueError, match=r"0.weight has 6 channels, got 5 norms"):
        CorrectedSteps(optimizer, model, {"0.weight": torch.ones(5)})
    with pytest.raises(ValueError, match=r"finite and above 0"):
        CorrectedSteps(optimizer, model, {"0.weight": torch.tensor([1, 1, 1, 1, 1, 0.0])})
    with pytest.raises(ValueError, match=r"not among the optimizer's parameters"):
        CorrectedSteps(torch.optim.SGD(network().parameters(), lr=0.1), model, good)
    correction = CorrectedSteps(optimizer, model, good)
    with pytest.raises(ValueError, match=r"3.weight only in one"):
        correction.set_norms({**good, "3.weight": torch.ones(4)})
