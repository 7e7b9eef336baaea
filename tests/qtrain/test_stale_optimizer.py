"""An optimizer that was built before quantize() trains the original: said at its first step."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.optimizer import register_optimizer_step_post_hook

from qtrain import quantize, quantize_
from qtrain.conversion import stale_optimizer


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def backward(model: nn.Module) -> None:
    model(torch.linspace(-1, 1, 6).view(2, 3)).square().sum().backward()


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def watches() -> int:
    return len(stale_optimizer._WATCHES)


def test_the_first_step_says_that_nothing_trains_the_copy_and_only_that() -> None:
    original = net()
    optimizer = SGD(original.parameters(), lr=0.1)
    model = quantize(original)
    before = weights(model)
    for step in range(3):
        backward(model)
        if step == 0:
            with pytest.warns(UserWarning, match=r"SGD steps .*quantize_\(\)") as caught:
                optimizer.step()
            assert len(caught) == 1
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


@pytest.mark.parametrize("order", ["one after the other", "together, the baseline first"])
def test_a_baseline_beside_its_copy_is_healthy(order: str) -> None:
    original = net()
    one = SGD(original.parameters(), lr=0.1)
    model = quantize(original)
    two = SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            backward(original)
            if order == "one after the other":
                one.step()
                backward(model)
            else:
                backward(model)
                one.step()
            two.step()


def test_a_copy_that_is_only_evaluated_is_healthy() -> None:
    original = net()
    optimizer = SGD(original.parameters(), lr=0.1)
    model = quantize(original)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            backward(original)
            optimizer.step()
            with torch.no_grad():
                model(torch.ones(2, 3))


def test_in_place_an_optimizer_keeps_working() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    before, count = weights(model), watches()
    quantize_(model)
    assert watches() == count
    backward(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


def test_the_watch_ends_with_the_first_step_of_the_copy_or_with_the_copy() -> None:
    count = watches()
    original = net()
    model = quantize(original)
    assert watches() == count + 1
    copy.deepcopy(model)
    SGD(net().parameters(), lr=0.1).step()  # of another model
    assert watches() == count + 1
    SGD(model.parameters(), lr=0.1).step()
    assert watches() == count
    other = quantize(original)
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None and watches() == count


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its own
def test_a_compiled_step_goes_on() -> None:
    original = net()
    model = quantize(original)
    optimizer = SGD(original.parameters(), lr=0.1)
    backward(model)
    backward(original)
    torch.compile(optimizer.step, backend="eager")()
    assert model is not None


def test_watches_end_in_one_step_beside_hooks_of_others() -> None:
    models = [quantize(net()) for _ in range(3)]
    optimizer = SGD([p for model in models for p in model.parameters()], lr=0.1)
    before = watches()
    handle = register_optimizer_step_post_hook(lambda *_: None)
    optimizer.step()
    handle.remove()
    assert watches() == before - 3
