"""Copies of a model with its optimizer: the same steps, nothing shared."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qtrain import CorrectedSteps, NormHistory
from qtrain.copies import copied
from qtrain.replicas import replica

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, history_size=3),
    "groups": lambda p: torch.optim.SGD(
        [{"params": p[:1], "lr": 0.3}, {"params": p[1:], "weight_decay": 0.1}], lr=0.1, momentum=0.5
    ),
    "rate-tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[Tensor]:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)  # type: ignore[arg-type]
    return [p.detach().clone() for p in model.parameters()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_copy_goes_on_as_the_original_would_and_leaves_it_alone(name: str) -> None:
    model = net()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    start = train(model, optimizer, 3)
    kept = copy.deepcopy(optimizer.state_dict())
    twin, own = replica(model, optimizer, copied)
    ahead = train(twin, own, 3)
    assert equal([p.detach() for p in model.parameters()], start)
    assert str(optimizer.state_dict()) == str(kept)
    assert equal(train(model, optimizer, 3), ahead) and not equal(ahead, start)


def test_a_schedulers_wrap_stays_with_the_original() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    twin, own = replica(model, optimizer, copied)
    before = [p.detach().clone() for p in model.parameters()]
    assert not equal(train(twin, own, 1), before)
    assert equal([p.detach() for p in model.parameters()], before)


def test_gradients_that_are_there_are_copied() -> None:
    model = net()
    model(torch.ones(1, 4)).sum().backward()
    twin, _ = replica(model, torch.optim.SGD(model.parameters(), lr=0.1), copied)
    for old, new in zip(model.parameters(), twin.parameters(), strict=True):
        assert old.grad is not None and new.grad is not None
        assert torch.equal(old.grad, new.grad) and old.grad is not new.grad


class Holding(torch.optim.SGD):
    """Holds a generator, of which there can be no copy."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        self.rates = (rate for rate in (0.1, 0.2))


def test_what_cannot_be_copied_is_refused() -> None:
    model = net()
    foreign = torch.optim.SGD([*model.parameters(), nn.Parameter(torch.ones(3))], lr=0.1)
    with pytest.raises(ValueError, match=r"group 0 of SGD trains a tensor of shape \(3,\)"):
        replica(model, foreign, copied)
    with pytest.raises(ValueError, match="this Holding cannot be copied"):
        replica(model, Holding(model.parameters()), copied)
    with pytest.raises(TypeError, match=r"got list, need a torch\.optim\.Optimizer"):
        replica(model, [], copied)  # type: ignore[arg-type]
    hooked = torch.optim.SGD(model.parameters(), lr=0.1)
    history = NormHistory()
    history.record(model)
    correction = CorrectedSteps(hooked, model, history.at(0))
    with pytest.raises(ValueError, match="has step hooks"):
        replica(model, hooked, copied)
    del correction
