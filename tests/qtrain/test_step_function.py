"""A user's step: what it must return, and what it must leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtrain import lockstep, quantize, replay
from qtrain.step_function import loss_of


def step(model: nn.Module, optimizer: Any, batch: Any) -> Tensor:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(batch["x"]), batch["y"])
    loss.backward()
    optimizer.step()
    return loss


Run = Callable[[nn.Module, torch.optim.Optimizer, Any, list[Any]], object]
RUNS: dict[str, Run] = {
    "lockstep": lambda model, optimizer, step, batches: lockstep(model, optimizer, step, batches),
    "replay": lambda model, optimizer, step, batches: replay(model, optimizer, step, batches)(
        quantize(nn.Linear(6, 3), bits=8)
    ),
}


@pytest.mark.parametrize("run", RUNS)
def test_a_step_that_changes_what_other_runs_need_is_refused(run: str) -> None:
    model = quantize(nn.Linear(6, 3), bits=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    batches = [{"x": torch.randn(4, 6), "y": torch.arange(4) % 3}]

    def trains_the_original(model_: nn.Module, own: Any, batch: Any) -> Tensor:
        return step(model, optimizer, batch)

    def moves_the_rate(model_: nn.Module, own: Any, batch: Any) -> Tensor:
        loss = step(model_, own, batch)
        optimizer.step()  # else the scheduler warns; it has no gradients
        scheduler.step()
        return loss

    def scales_the_batch(model_: nn.Module, own: Any, batch: Any) -> Tensor:
        batch["x"].mul_(2)
        return step(model_, own, batch)

    RUNS[run](model, optimizer, step, batches)
    for wrong, says in (
        (moves_the_rate, "changed the optimizer that was given"),
        (scales_the_batch, "changed its batch in place"),
        (trains_the_original, "changed the model that was given"),
    ):
        with pytest.raises(ValueError, match=f"step: it {says}"):
            RUNS[run](model, optimizer, wrong, batches)


def test_a_loss_is_one_number() -> None:
    good = (1, 0.5, np.float32(2), torch.tensor(3.0), torch.tensor([4.0], requires_grad=True))
    assert [loss_of(value) for value in good] == [1.0, 0.5, 2.0, 3.0, 4.0]
    for bad in (None, True, "1", 1j, torch.ones(2), torch.tensor(1j), [1.0]):
        with pytest.raises(ValueError, match=r"step: it returned .*, need the loss, one number"):
            loss_of(bad)
